"""Stored ratios: written in one way, keyed by GPU and versions, advisory elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.analysis.statistics.simulation import QUIET, simulate
from harness.analysis.statistics.verdict import Verdict
from harness.comparison.comparison import NothingToCompare
from harness.comparison.policy import Policy
from harness.comparison.table import markdown
from harness.gate.baseline import Baseline, UnfitForBaseline, compare_with, load_baseline, updated, write_baseline
from harness.record import Provenance, Record
from harness.yaml_source import InvalidFile
from tests.harness.conftest import PROVENANCE, MakeRecord

POLICY = Policy()
GPU = {"name": "NVIDIA H200", "driver": "570.1"}


def provenance(**versions: str) -> Provenance:
    packages = {"torch": "2.11.0", "triton": "3.6.0", "numpy": "2.5.2"} | versions
    return PROVENANCE.model_copy(update={"environment": {"cuda": "13.0", "packages": packages, "gpu": GPU}})


@pytest.fixture
def make_run(make_record: MakeRecord) -> Any:
    def make(ours: float = 60.0, slow: float = 1.0, seed: int = 0, **versions: str) -> list[Record]:
        true = {"ours": ours * slow, "baseline": 65.0 * slow, "gemm": 14.0 * slow}
        run = simulate(true, 20, QUIET, seed)
        gemm = run.turns["gemm"].values.ravel().tolist()
        return [
            make_record(name, times=run.times(name), provenance=provenance(**versions), **{"gemm_ms": None})
            .model_copy(update={"gemm_ms": gemm})
            for name in ("baseline", "ours")
        ]  # fmt: skip

    return make


def test_a_run_is_held_to_the_stored_ratios_whatever_the_clock(make_run: Any, tmp_path: Path) -> None:
    file = tmp_path / "baseline.yaml"
    write_baseline(file, updated(Baseline(), make_run(seed=1)))
    same = compare_with(load_baseline(file), make_run(seed=2, slow=1.4), POLICY)
    assert same.exit_code == 0 and {row.time_verdict for row in same.rows} == {Verdict.SAME}
    slower = compare_with(load_baseline(file), make_run(seed=2, ours=66.0), POLICY)
    assert slower.exit_code == 1
    assert {row.name: row.time_verdict for row in slower.rows}["ours"] is Verdict.SLOWER
    assert "`ours` is SLOWER by 9." in markdown(slower)


def test_a_time_that_is_not_stored_or_not_measured_is_not_passed(make_run: Any) -> None:
    run = make_run(seed=1)
    untimed = [record.model_copy(update={"times": None}) for record in run]
    for stored, measured, why in ((run, untimed, "head has no time"), (untimed, run, "base has no time")):
        found = compare_with(updated(Baseline(), stored), measured, POLICY)
        assert found.exit_code == 6 and f"times not compared: {why} of it" in markdown(found)
    assert compare_with(updated(Baseline(), untimed), untimed, POLICY).exit_code == 0


def test_the_file_is_the_same_however_often_and_in_whatever_order_it_is_written(make_run: Any, tmp_path: Path) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    first, second = make_run(seed=1), make_run(seed=2, torch="2.13.0")
    write_baseline(one, updated(updated(Baseline(), first), second))
    write_baseline(two, updated(updated(Baseline(), list(reversed(second))), list(reversed(first))))
    assert one.read_text() == two.read_text()
    write_baseline(two, load_baseline(one))
    assert one.read_text() == two.read_text()


def test_a_diff_shows_a_line_for_each_figure_that_changed(make_run: Any, tmp_path: Path) -> None:
    file = tmp_path / "baseline.yaml"
    stored = updated(Baseline(), make_run(seed=1))
    write_baseline(file, stored)
    before = file.read_text().splitlines()
    record = make_run(seed=1)[1]
    memory = record.memory.model_copy(update={"retained_bytes": 1})
    write_baseline(file, updated(stored, [record.model_copy(update={"memory": memory})]))
    after = file.read_text().splitlines()
    changed = [line for line in after if line not in before]
    assert len(after) == len(before) and len(changed) == 1
    assert changed[0].strip().startswith("memory: {fwd_bwd_peak_bytes: 29360128000, ")
    (figures,) = {line.strip() for line in after if "gemms: [4.2" in line}
    digits = figures.partition("[")[2].partition("]")[0].split(", ")
    assert len(digits) == 4 and all(len(figure.replace(".", "")) <= 4 for figure in digits)


def test_other_versions_are_named_and_advisory_unless_strict(make_run: Any) -> None:
    stored = updated(Baseline(), make_run(seed=1))
    slower = make_run(seed=2, ours=66.0, torch="2.13.0")
    advisory = compare_with(stored, slower, POLICY)
    assert advisory.exit_code == 0
    assert advisory.unlike == ["torch: 2.11.0 against 2.13.0"]
    text = markdown(advisory)
    assert "advisory only" in text and "torch: 2.11.0 against 2.13.0" in text and "SLOWER" in text
    assert compare_with(stored, slower, POLICY, strict=True).exit_code == 1
    assert compare_with(stored, make_run(seed=2, numpy="3.0"), POLICY).advisory is None  # computes nothing here


@pytest.mark.parametrize(
    ("limit", "words"),
    [({"power_limit_w": 350.0}, "power limit (W): none against 350"), ({"max_sm_clock_mhz": 1200}, "highest SM clock")],
)
def test_a_gpu_whose_limits_were_changed_is_another(make_run: Any, limit: dict[str, Any], words: str) -> None:
    limited = provenance()
    limited = limited.model_copy(update={"environment": limited.environment | {"gpu": GPU | limit}})
    head = [record.model_copy(update={"provenance": limited}) for record in make_run(seed=2, ours=90.0)]
    found = compare_with(updated(Baseline(), make_run(seed=1)), head, POLICY)
    assert words in "; ".join(found.unlike) and found.advisory is not None and found.exit_code == 0


def test_what_head_answers_for_alone_fails_an_advisory_gate_too(make_run: Any, make_record: MakeRecord) -> None:
    stored = updated(Baseline(), make_run(seed=1))
    wrong = make_record("ours", status="disagrees", provenance=provenance(torch="2.13.0"))
    assert compare_with(stored, [wrong], POLICY).exit_code == 3


def test_each_environment_is_held_to_its_own(make_run: Any) -> None:
    stored = updated(updated(Baseline(), make_run(seed=1)), make_run(seed=2, ours=70.0, torch="2.13.0"))
    assert compare_with(stored, make_run(seed=3, ours=70.0, torch="2.13.0"), POLICY).exit_code == 0
    assert compare_with(stored, make_run(seed=3, ours=70.0), POLICY).exit_code == 1


def test_rows_and_cases_that_are_not_measured_again_stay(make_run: Any) -> None:
    both = make_run(seed=1)
    stored = updated(updated(Baseline(), both), both[1:])
    (entry,) = stored.entries
    (rows,) = entry.cases.values()
    assert set(rows) == {"baseline", "ours"}
    assert "ok, gone" in markdown(compare_with(stored, both[1:], POLICY))


def test_what_should_not_become_a_baseline(make_run: Any, make_record: MakeRecord) -> None:
    with pytest.raises(UnfitForBaseline, match=r"ours on .* is crashed"):
        updated(Baseline(), [make_record("ours", status="crashed")])
    with pytest.raises(UnfitForBaseline, match="the run has 2"):
        updated(Baseline(), [*make_run(seed=1), *make_run(seed=1, torch="2.13.0")])
    with pytest.raises(NothingToCompare, match="empty"):
        compare_with(Baseline(), make_run(), POLICY)
    with pytest.raises(NothingToCompare, match="no row of this run"):
        compare_with(updated(Baseline(), make_run()), [make_record("ours", tokens=5, provenance=provenance())], POLICY)


def test_mistakes_in_a_baseline_have_lines(tmp_path: Path) -> None:
    file = tmp_path / "baseline.yaml"
    file.write_text(
        "format: 1\nentries:\n- commit: a\n  environment: {GPU: x}\n  cases:\n    c:\n      ours: {status: fine}\n"
    )
    with pytest.raises(InvalidFile, match=r"baseline.yaml:7: entries.0.cases.c.ours.status"):
        load_baseline(file)
