"""JSON and CSV: the promised keys, strict syntax, the same numbers in both; and no torch on the way."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from harness.analysis.export import as_csv, as_json
from harness.analysis.report import render, write_report
from harness.analysis.row import COLUMNS
from harness.cli import app
from harness.record import Agreement, Record, Status

MakeRecord = Callable[..., Record]
WriteRun = Callable[[list[Record]], Path]
ROOT = Path(__file__).resolve().parents[3]

# the keys that other programs may rely on
PROMISED = """
case implementation status reason tokens hidden_size vocab_size label_smoothing softcap inputs input_parameters
ignored_fraction reduction dtype grads_in_forward fwd_no_grad_ms fwd_no_grad_peak_bytes fwd_ms bwd_ms fwd_bwd_ms
fwd_bwd_gemms fwd_peak_bytes bwd_peak_bytes fwd_bwd_peak_bytes retained_bytes gradient_floor_bytes max_excess loss_error
grad_input_error grad_weight_error grad_input_excess grad_weight_excess samples linear_bias seed gemm_ms interpreted
analytic expected suite commit device_name reference
"""


def strict(text: str) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    parsed: list[dict[str, Any]] = json.loads(text, parse_constant=refuse)
    return parsed


@pytest.fixture
def records(make_record: MakeRecord) -> list[Record]:
    """A row of every status, an interpreted and an analytic one."""
    nothing: dict[str, Any] = {"ms": None, "mib": None, "error": None}
    return [
        make_record("lower-bound", analytic=True, mib=(0, 1161, 1161), ms=None, error=None, gemm_ms=None),
        make_record("baseline", inputs={"kind": "gaussian", "std": 2.0}, softcap=30.0),
        make_record("captured", inputs={"kind": "file", "path": "activations/gemma.safetensors"}),
        make_record("cce", "disagrees", expected=(["disagrees"], "the filter, as known")),
        make_record("too-fast", "impossible"),
        make_record("liger", interpreted=True, grads_in_forward=True, ms=None, mib=None),
        *(make_record(status.value, status.value, **nothing) for status in Status if status not in _COMPLETED),
    ]


_COMPLETED = {Status.OK, Status.DISAGREES, Status.IMPOSSIBLE}


def test_json_has_the_promised_keys_in_every_object(records: list[Record]) -> None:
    rows = strict(as_json(records))
    assert len(rows) == len(records)
    for row in rows:
        assert tuple(row) == COLUMNS
        assert not set(PROMISED.split()) - set(row)


def test_json_values(records: list[Record]) -> None:
    rows = {row["implementation"]: row for row in strict(as_json(records))}
    baseline = rows["baseline"]
    assert baseline["case"] == records[1].case.id
    assert (baseline["inputs"], baseline["input_parameters"], baseline["softcap"]) == ("gaussian", {"std": 2.0}, 30.0)
    assert rows["captured"]["inputs"] == "file:gemma"
    assert isinstance(baseline["fwd_bwd_peak_bytes"], int)
    assert rows["cce"]["status"] == "disagrees"
    assert (rows["cce"]["expected"], rows["cce"]["as_expected"]) == ("the filter, as known", True)
    assert rows["crashed"]["as_expected"] is False
    assert (rows["liger"]["fwd_bwd_ms"], rows["liger"]["grad_input_excess"]) == (None, 1.0)
    assert rows["unavailable"]["reason"] == "it is unavailable"
    assert rows["unavailable"]["fwd_ms"] is rows["unavailable"]["loss_error"] is rows["baseline"]["reason"] is None


def test_what_is_not_finite_becomes_null(make_record: MakeRecord) -> None:
    errors = {"loss_error": float("nan"), "grad_input_error": float("inf"), "grad_weight_error": 1.0}
    excesses = {"grad_input_excess": float("inf"), "grad_weight_excess": 500.0}
    broken = Agreement(**errors, **excesses, loss_limit=1e-5, failures=["dE is not finite"])
    (row,) = strict(as_json([make_record("wrong", "disagrees", agreement=broken)]))
    assert row["loss_error"] is row["grad_input_error"] is row["grad_input_excess"] is None
    assert row["grad_weight_excess"] == 500.0


def test_no_records_are_an_empty_array() -> None:
    assert strict(as_json([])) == []


def test_csv_and_json_say_the_same(records: list[Record]) -> None:
    table = pd.read_csv(io.StringIO(as_csv(records)))
    assert list(table.columns) == list(COLUMNS)
    for read, row in zip(table.to_dict(orient="records"), strict(as_json(records)), strict=True):
        for name, value in row.items():
            if value is None:
                assert pd.isna(read[name]), name
            elif isinstance(value, dict | list):
                assert json.loads(read[name]) == value
            else:
                assert read[name] == value, name


def test_csv_booleans_are_spelt_as_in_json(records: list[Record]) -> None:
    written, wanted = list(csv.DictReader(io.StringIO(as_csv(records)))), strict(as_json(records))
    names = [name for name, value in wanted[0].items() if isinstance(value, bool)]
    assert {"as_expected", "analytic", "linear_bias"} <= set(names)
    for name in names:
        assert [row[name] for row in written] == [json.dumps(row[name]) for row in wanted], name


@pytest.mark.parametrize("format", ["markdown", "csv", "json"])
def test_what_is_printed_ends_in_one_newline(format: str, records: list[Record], write_run: WriteRun) -> None:
    printed = CliRunner().invoke(app, ["report", str(write_run(records)), "--format", format]).stdout
    assert printed.endswith("\n")
    assert not printed.endswith("\n\n")


def test_where_an_implementation_comes_from(make_record: MakeRecord) -> None:
    own, known = make_record("mine", path="mine.loss:Loss", source_sha256="ab12"), make_record()
    rows = strict(as_json([own, known]))
    assert [(row["path"], row["source_sha256"]) for row in rows] == [("mine.loss:Loss", "ab12"), (None, None)]


def test_render_and_write_report(records: list[Record], write_run: WriteRun) -> None:
    run = write_run(records)
    assert render(run, "json") == as_json(records)
    assert render(run, "csv") == as_csv(records)
    report = write_report(run)
    first = report.read_bytes()
    assert report == run / "report.md"
    assert first.decode() == render(run, "markdown") + "\n"
    assert write_report(run).read_bytes() == first
    assert sorted(path.name for path in run.iterdir()) == ["pictures", "records.jsonl", "report.html", "report.md"]


def test_reading_results_imports_no_torch() -> None:
    modules = sorted(f"harness.analysis.{file.stem}" for file in (ROOT / "harness" / "analysis").glob("[a-z]*.py"))
    assert "harness.analysis.report" in modules
    program = f"import sys, {', '.join(modules)}; print([m for m in ('torch', 'triton') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_manuals_examples_run(records: list[Record], monkeypatch: pytest.MonkeyPatch) -> None:
    manual = (ROOT / "docs" / "reading-results.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", manual, flags=re.DOTALL)
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    exec(program, names)
    assert list(names["frame"].columns) == list(COLUMNS)

    (query,) = re.findall(r"jq -c '(.*?)'", manual)
    assert "(.analytic | not)" in query  # the lower bound is ok, and has no time
    if shutil.which("jq"):
        asked = ["jq", "-c", query]
        listed = subprocess.run(asked, input=as_json(records), capture_output=True, text=True, check=True).stdout
        assert [json.loads(line)[1] for line in listed.splitlines()] == ["baseline", "captured", "liger"]


def test_the_manual_explains_every_column() -> None:
    manual = (ROOT / "docs" / "reading-results.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"`(\w+)`", manual))
    assert not set(COLUMNS) - explained
