"""Two runs of the same code: which rows they share, and how far their ratios are apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.analysis.spread import share_within, spread_report, spreads
from harness.analysis.statistics.error_rates import simulated_case
from harness.analysis.statistics.simulation import QUIET
from harness.cli import app
from harness.record import Record

MakeRecord = Callable[..., Record]


def run_of(make_record: MakeRecord, seed: int, slowdown: float) -> list[Record]:
    """baseline and liger, `slowdown` slower, on the simulated clock; and a row that did not run."""
    run = simulated_case(QUIET, 12, seed, slowdown)
    gemm_ms = run.turns["gemm"].values.ravel().tolist()
    rows = {"baseline": run.times("base"), "liger": run.times("head")}
    records = [make_record(name, times=times) for name, times in rows.items()]
    found = [record.model_copy(update={"gemm_ms": gemm_ms}) for record in records]
    return [*found, make_record("cce", "unsupported")]


def test_the_difference_of_a_row_is_that_of_its_ratios(make_record: MakeRecord) -> None:
    found = {s.first.implementation: s for s in spreads(run_of(make_record, 0, 0.0), run_of(make_record, 1, 0.05))}
    assert list(found) == ["baseline", "liger"]  # what was not timed has no ratio
    assert found["liger"].to_gemm == pytest.approx(0.05, abs=0.01)
    assert found["liger"].to_reference == pytest.approx(0.05, abs=0.01)
    assert found["baseline"].to_gemm == pytest.approx(0, abs=0.01)
    assert found["baseline"].to_reference is None


def test_the_report_says_how_many_repeat(make_record: MakeRecord) -> None:
    report = spread_report(run_of(make_record, 0, 0.0), run_of(make_record, 1, 0.05))
    assert "- 2 rows timed in both" in report
    assert "- ratio to the GEMM: 50 % of 2 within 2 %; median " in report
    assert "- ratio to the reference: 0 % of 1 within 2 %" in report
    (liger,) = [line.split("|") for line in report.splitlines() if line.startswith("| liger")]
    assert liger[4].strip().startswith(("+4.", "+5."))
    assert report.count("- measured 2026-03-04 05:06 UTC") == 2


def test_runs_without_a_common_row(make_record: MakeRecord) -> None:
    other = [make_record("liger", tokens=4)]
    assert spread_report(run_of(make_record, 0, 0.0), other).endswith("No row was timed in both runs.")
    assert spread_report([], []).endswith("No row was timed in both runs.")
    with pytest.raises(ValueError, match="share no row"):
        share_within([])


def test_within_counts_both_directions() -> None:
    assert share_within([0.019, -0.02, 0.021, -0.03]) == 0.5


def test_on_the_command_line(make_record: MakeRecord, tmp_path: Path) -> None:
    for name, slowdown in (("one", 0.0), ("other", 0.05)):
        (tmp_path / name).mkdir()
        lines = (record.model_dump_json() + "\n" for record in run_of(make_record, 0, slowdown))
        (tmp_path / name / "records.jsonl").write_text("".join(lines))
    printed = CliRunner().invoke(app, ["spread", str(tmp_path / "one"), str(tmp_path / "other")])
    assert printed.exit_code == 0
    assert printed.stdout.startswith("# How well two runs agree\n")
    missing = CliRunner().invoke(app, ["spread", str(tmp_path / "one"), str(tmp_path / "nowhere")])
    assert missing.exit_code == 2
    assert "does not exist" in missing.stderr
