"""The whole of `gate --pair` on a simulated GPU: 0.5 % noise, ±8 % shared drift, throttle steps, two clock states."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.analysis.frame import read_records
from harness.analysis.statistics.simulation import (
    EVERYTHING,
    LIKE_H200,
    NOISE_AND_DRIFT,
    QUIET,
    SHORT_CALLS,
    THROTTLED,
    NoiseModel,
)
from harness.analysis.statistics.verdict import Verdict
from harness.comparison.policy import Policy
from harness.comparison.table import markdown
from harness.comparison.within import compare_within, pairs_of_trees
from harness.gate import pair_runner
from harness.gate.pair_gate import AGAIN
from harness.gate.tree import UnusableTree
from tests.harness.fake_worker import FakeWorker
from tests.harness.gate.simulated import MODELS, ONE_SHORT_ROW, Planted, SimulatedTree, exit_codes, simulated_gate

MIB = 2**20


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_ten_gates_of_the_same_code_pass(model: NoiseModel) -> None:
    assert exit_codes(model, 10, Planted()) == {0: 10}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("seed", range(3))
def test_a_planted_slowdown_of_3_percent_is_a_regression(model: NoiseModel, seed: int, tmp_path: Path) -> None:
    found = simulated_gate(model, seed, Planted(slowdown=0.03), tmp_path)
    text = markdown(found)
    assert found.exit_code == 1
    assert "REGRESSION (exit 1)" in text and "`ours` is SLOWER by " in text
    verdicts = {row.name: row.time_verdict for row in found.rows}
    assert verdicts["ours"] is Verdict.SLOWER and verdicts["liger"] in (Verdict.SAME, Verdict.UNSURE)


def test_the_gates_of_the_example_at_the_noise_of_its_gpu(tmp_path: Path) -> None:
    """Calls of 11 ms vary by 3 %: the rounds of two minutes tell 3 % slower from the same code all the same."""
    assert exit_codes(SHORT_CALLS, 10, Planted(), ONE_SHORT_ROW) == {0: 10}
    assert exit_codes(SHORT_CALLS, 10, Planted(slowdown=0.03), ONE_SHORT_ROW) == {1: 10}


def test_rounds_go_on_for_what_the_gate_will_judge(tmp_path: Path) -> None:
    """An order of head's that costs just the margin is in no sample: nobody knows, and no round says it does."""
    found = simulated_gate(NOISE_AND_DRIFT, 0, Planted(rarely_ms=0.9), tmp_path)
    (ours,) = (row for row in found.rows if row.name == "ours")
    assert ours.time_verdict is Verdict.UNSURE
    stopped = {r.implementation: r.times.stopped for r in read_records(tmp_path) if r.times}
    assert stopped["ours@base"] == stopped["ours@head"] == "budget"
    assert stopped["liger@head"] == "known"


def test_one_mebibyte_more_is_a_regression(tmp_path: Path) -> None:
    found = simulated_gate(EVERYTHING, 0, Planted(more_bytes=MIB), tmp_path)
    assert found.exit_code == 1
    assert "`ours` takes MORE memory: fwd+bwd peak +1,048,576 bytes" in markdown(found)
    assert {row.time_verdict for row in found.rows} == {Verdict.SAME}


def test_a_gradient_scale_of_2_percent_disagrees(tmp_path: Path) -> None:
    found = simulated_gate(EVERYTHING, 0, Planted(gradient_scale=1.02), tmp_path)
    text = markdown(found)
    assert found.exit_code == 3
    assert "AN IMPLEMENTATION DISAGREES (exit 3)" in text
    assert "`ours` disagrees, base is ok: grad_weight: error 0.02 is 6.73 x eager's" in text
    assert "ok to **disagrees**" in text


@pytest.mark.parametrize("slowdown", [0.005, 0.01])
@pytest.mark.parametrize("model", [NOISE_AND_DRIFT, THROTTLED, EVERYTHING, LIKE_H200])
def test_a_difference_inside_the_margin_is_never_slower(model: NoiseModel, slowdown: float) -> None:
    found = exit_codes(model, 15, Planted(slowdown=slowdown))
    assert set(found) <= {0, 6}


def test_unsure_plays_on_and_what_is_known_rests(tmp_path: Path) -> None:
    def played(slowdown: float) -> dict[str, int]:
        directory = tmp_path / str(slowdown)
        directory.mkdir()
        found = simulated_gate(QUIET, 0, Planted(slowdown=slowdown), directory)
        return {row.name: row.time.interval.rounds for row in found.rows if row.time and row.time.interval}

    assert played(0.0) == {"ours": 10, "liger": 10}
    edge = played(0.015)  # exactly the margin: unsure for ever
    assert edge["liger"] == 10
    assert edge["ours"] > 60  # until the case's budget is spent


def test_rounds_end_with_the_budget(tmp_path: Path) -> None:
    policy = Policy(time_margin=0.0001)  # nobody can know that
    found = simulated_gate(NOISE_AND_DRIFT, 0, Planted(), tmp_path, policy)
    assert found.exit_code == 6
    assert FakeWorker.log.count(("ours@base", "turn")) < 120 / 1.5  # s of budget, and of a round


def test_what_seems_slower_is_measured_again_with_new_processes(tmp_path: Path) -> None:
    simulated_gate(QUIET, 0, Planted(slowdown=0.03), tmp_path)
    starts = [name for name, what in FakeWorker.log if what == "start" and "@" in name and "again" not in name]
    assert starts.count("ours@head") == 2 and starts.count("liger@head") == 1
    records = [json.loads(line) for line in (tmp_path / AGAIN / "records.jsonl").read_text().splitlines()]
    assert [record["implementation"] for record in records] == ["ours@base", "ours@head"]


def test_only_twice_slower_is_slower(tmp_path: Path) -> None:
    """Processes that are 2 % apart as long as they live: what one pair of them shows says little of the code."""
    found = {}
    for seed in range(12):
        directory = tmp_path / str(seed)
        directory.mkdir()
        gate = simulated_gate(QUIET, seed, Planted(process_bias=0.02), directory)
        for row in gate.rows:
            if row.time is not None and row.time.again is not None and row.time.again.interval is not None:
                assert row.time.interval is not None
                twice = row.time.interval.low > 1.015 and row.time.again.interval.low > 1.015
                assert (row.time_verdict is Verdict.SLOWER) is twice
                found[seed] = (twice, gate.exit_code)
    assert any(not twice and code in (5, 6) for twice, code in found.values())


def test_an_aa_that_is_off_by_more_than_the_margin_makes_the_machine_unfit(tmp_path: Path) -> None:
    codes = []
    for seed in range(12):
        directory = tmp_path / str(seed)
        directory.mkdir()
        gate = simulated_gate(QUIET, seed, Planted(process_bias=0.1), directory)
        codes.append(gate.exit_code)
        if gate.exit_code == 5:
            assert "THIS MACHINE CANNOT TELL (exit 5)" in markdown(gate)
            assert "two workers of the same code differ by more than 1.5 %" in markdown(gate)
    assert codes.count(5) >= 3


def test_records_say_which_tree_and_the_comparison_can_be_repeated(tmp_path: Path) -> None:
    found = simulated_gate(THROTTLED, 1, Planted(slowdown=0.03), tmp_path)
    records = read_records(tmp_path)
    assert [r.implementation for r in records] == ["ours@base", "ours@head", "liger@base", "liger@head"]
    assert [r.again is not None for r in records] == [True, False, False, False]  # one A/A
    repeated = compare_within(records, pairs_of_trees(records), Policy(), read_records(tmp_path / AGAIN))
    assert [row.time_verdict for row in repeated.rows] == [row.time_verdict for row in found.rows]
    assert repeated.exit_code == found.exit_code == 1


def test_pairs_stay_together_on_a_small_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.running.scheduler.places_on", lambda *_: 3)  # base, head and a second worker
    found = simulated_gate(QUIET, 0, Planted(), tmp_path)
    assert found.exit_code == 0
    assert all(row.time is not None and row.time.interval is not None for row in found.rows)
    assert len(found.rows) == 2 and {row.time.control is not None for row in found.rows if row.time} == {True}
    monkeypatch.setattr("harness.running.scheduler.places_on", lambda *_: 2)  # no room for an A/A
    (tmp_path / "two").mkdir()
    found = simulated_gate(QUIET, 0, Planted(), tmp_path / "two")
    assert found.exit_code == 0 and not found.controls


def test_a_row_that_only_head_has_is_new_and_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = {"ours": "nowhere:ours"}
    monkeypatch.setattr(SimulatedTree, "registry", lambda tree: {} if tree.label == "base" else ours)
    found = simulated_gate(QUIET, 0, Planted(gradient_scale=1.02), tmp_path)
    assert [(row.name, row.base) for row in found.rows] == [("ours", None)]
    assert found.exit_code == 3 and "disagrees, new" in markdown(found)


def test_a_row_that_head_no_longer_registers_is_a_regression(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one is left, so that there is something to compare."""
    both = {name: f"nowhere:{name}" for name in ("ours", "liger")}
    monkeypatch.setattr(
        SimulatedTree, "registry", lambda tree: both if tree.label == "base" else {"liger": "nowhere:liger"}
    )
    found = simulated_gate(QUIET, 0, Planted(), tmp_path)
    assert found.exit_code == 1
    assert [fault.words for fault, _ in found.faults] == ["`ours` is gone: base offers it, head does not"]


def test_a_head_that_has_none_of_the_rows_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = {"ours": "nowhere:ours"}
    monkeypatch.setattr(SimulatedTree, "registry", lambda tree: {} if tree.label == "head" else ours)
    with pytest.raises(UnusableTree, match="head=head has none of ours, liger"):
        simulated_gate(QUIET, 0, Planted(), tmp_path)


def test_looks_are_ten_rounds_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    ratio_interval = pair_runner.ratio_interval
    monkeypatch.setattr(
        pair_runner, "ratio_interval", lambda h, b: looked.append(len(h.rounds)) or ratio_interval(h, b)
    )
    simulated_gate(LIKE_H200, 0, Planted(slowdown=0.014), tmp_path)
    assert set(looked) <= set(range(10, 300, 10)) and len(set(looked)) > 2
