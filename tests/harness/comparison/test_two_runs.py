"""Runs against each other: ratios of ratios, unlike environments, rows that came and went, and what fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import harness
from harness.analysis.statistics.ratio import ratio_interval
from harness.analysis.statistics.simulation import LIKE_H200, NOISE_AND_DRIFT, NoiseModel, simulate
from harness.analysis.statistics.verdict import Verdict
from harness.comparison.across import compare_runs
from harness.comparison.comparison import Comparison, NothingToCompare
from harness.comparison.policy import Policy
from harness.comparison.ratio import control_of, quotient
from harness.comparison.row import RowComparison
from harness.comparison.table import markdown
from harness.comparison.within import compare_within
from harness.record import Probes, Record
from tests.harness.conftest import PROVENANCE, MakeRecord

ENDS = ("base", "head")
POLICY = Policy()
MIB = 2**20


@pytest.fixture
def make_run(make_record: MakeRecord) -> Any:
    """Records of `ours` and `baseline`, with true times in ms; `slow` is how much slower the whole GPU is."""

    def make(ours: float = 60.0, slow: float = 1.0, seed: int = 0, rounds: int = 40, **changes: Any) -> list[Record]:
        true = {"ours": ours, "baseline": 65.0, "gemm": 14.0}
        run = simulate({name: slow * time for name, time in true.items()}, rounds, NOISE_AND_DRIFT, seed)
        gemm = {"gemm_ms": run.turns["gemm"].values.ravel().tolist()}
        return [
            _with(make_record("baseline"), times=run.times("baseline"), **gemm),
            _with(make_record("ours"), times=run.times("ours"), **(gemm | changes)),
        ]

    return make


def _with(record: Record, **changes: Any) -> Record:
    return Record.model_validate(record.model_copy(update=changes).model_dump())


def test_both_halves_of_an_aa_pay_for_what_is_done_rarely(make_run: Any) -> None:
    """Work that is told and not timed belongs to the second worker too, or the same code seems to differ by it."""
    (_, record) = make_run(ours=10.0)
    assert record.agreement is not None
    told = record.agreement.model_copy(update={"figures": {"amortised_ms": 0.5, "amortised_calls": 100.0}})
    control = control_of(_with(record, again=record.times, agreement=told))
    assert control is not None and (control.low, control.estimate, control.high) == (1.0, 1.0, 1.0)


def row(comparison: Comparison, name: str = "ours") -> RowComparison:
    (found,) = [row for row in comparison.rows if row.name == name]
    return found


def words(comparison: Comparison) -> str:
    return " ".join(fault.words for fault, _ in comparison.faults)


def test_a_gpu_that_is_slower_throughout_changes_no_verdict(make_run: Any) -> None:
    found = compare_runs(make_run(seed=1), make_run(seed=2, slow=1.3), POLICY)
    assert row(found).time_verdict is Verdict.SAME
    assert found.exit_code == 0


def test_a_row_that_is_slower_than_the_margin_is_found(make_run: Any) -> None:
    found = compare_runs(make_run(seed=1), make_run(ours=67.0, seed=2, slow=0.9), POLICY)
    assert row(found).time_verdict is Verdict.SLOWER
    assert row(found, "baseline").time_verdict is Verdict.SAME
    assert found.exit_code == 1
    assert "`ours` is SLOWER by 1" in words(found)
    assert "REGRESSION (exit 1)" in markdown(found)


@pytest.mark.parametrize(
    ("change", "words_of_it"),
    [
        ({"device_name": "NVIDIA A100"}, "device: NVIDIA H200 against NVIDIA A100"),
        ({"environment": PROVENANCE.environment | {"gpu": {"name": "NVIDIA A100"}}}, "GPU: none against NVIDIA A100"),
        (
            {"environment": PROVENANCE.environment | {"packages": {"liger-kernel": "0.9"}}},
            "liger-kernel: 0.8.5 against 0.9",
        ),
        ({"environment": PROVENANCE.environment | {"gpu": {"driver": "570.1"}}}, "driver: none against 570.1"),
        ({"environment": PROVENANCE.environment | {"gpu": {"power_limit_w": 500.0}}}, "power limit (W)"),
        ({"environment": PROVENANCE.environment | {"variables": {"TRITON_CACHE_DIR": "/x"}}}, "TRITON_CACHE_DIR"),
        ({"environment": PROVENANCE.environment | {"variables": {"CUDA_VISIBLE_DEVICES": "1"}}}, None),
    ],
)
def test_unlike_environments_are_named_and_times_refused(make_run: Any, change: Any, words_of_it: str | None) -> None:
    head = [_with(r, provenance=PROVENANCE.model_copy(update=change)) for r in make_run(ours=90.0, seed=2)]
    found = compare_runs(make_run(seed=1), head, POLICY)
    if words_of_it is None:
        assert row(found).time_verdict is Verdict.SLOWER
        return
    assert words_of_it in "; ".join(found.unlike)
    assert row(found).time_verdict is None
    assert found.exit_code == 6  # not known is not passed
    assert "not compared" in markdown(found)
    assert row(compare_runs(make_run(seed=1), head, POLICY, across=True)).time_verdict is Verdict.SLOWER


def test_other_suites_seeds_tensors_and_clocks_are_named(make_run: Any) -> None:
    base = make_run(seed=1)
    later = [r.model_copy(update={"times": r.times.model_copy(update={"lead_in_ms": 50.0})}) for r in base if r.times]
    assert "lead-in (ms): 0 against 50" in compare_runs(base, later, POLICY).unlike
    assert "suite: gemma2 against other" in compare_runs(base, [_with(r, suite="other") for r in base], POLICY).unlike
    drawn = [[_with(r, input_checksum=checksum) for r in base] for checksum in ("aa", "bb")]
    assert "checksum aa against bb" in compare_runs(*drawn, POLICY).unlike[0]
    clocks = [[_with(r, probes=Probes(sm_clock_mhz=[mhz] * len(r.gemm_ms))) for r in base] for mhz in (1600, 1800)]
    assert compare_runs(*clocks, POLICY).unlike == ["SM clock during the GEMM: 1600 against 1800 MHz, 12.5 % apart"]
    case = base[0].case.model_copy(update={"seed": 3})
    reseeded = [_with(r, case=case, case_id=case.id) for r in base]
    with pytest.raises(NothingToCompare, match="seed: 0 against 3, so no case is common"):
        compare_runs(base, reseeded, POLICY)


def test_memory_is_compared_to_the_byte_and_in_unlike_environments_too(make_run: Any) -> None:
    base = make_run(seed=1)
    memory = base[1].memory
    assert memory is not None
    more = memory.model_copy(update={"fwd_bwd_peak_bytes": memory.fwd_bwd_peak_bytes + 1})
    found = compare_runs(base, [base[0], _with(base[1], memory=more, suite="other")], POLICY)
    assert "`ours` takes MORE memory: fwd+bwd peak +1 bytes" in words(found)
    assert found.exit_code == 1
    assert "MORE, +1 " in markdown(found)
    back = compare_runs([base[0], _with(base[1], memory=more)], base, POLICY)
    assert back.exit_code == 0 and "LESS, -1 " in markdown(back)
    lenient = Policy(memory_margin_bytes=1)
    assert compare_runs(base, [base[0], _with(base[1], memory=more)], lenient).exit_code == 0
    retained = memory.model_copy(update={"retained_bytes": memory.retained_bytes + 512})
    assert "MORE, retained +512" in markdown(compare_runs(base, [base[0], _with(base[1], memory=retained)], POLICY))


@pytest.mark.parametrize(
    ("before", "after", "code"),
    [(0.5, 0.99, 0), (0.5, 1.3, 1), (2.0, 2.4, 0), (2.0, 2.6, 1), (2.6, 2.0, 0), (3.9, 0.7, 0)],
)
def test_an_excess_may_grow_up_to_eagers_error_or_by_the_margin(
    make_run: Any, before: float, after: float, code: int
) -> None:
    sides = []
    for excess in (before, after):
        records = make_run(seed=1)
        agreement = records[1].agreement
        assert agreement is not None
        changed = agreement.model_copy(update={"grad_weight_excess": excess})
        sides.append([records[0], _with(records[1], agreement=changed)])
    found = compare_runs(sides[0], sides[1], POLICY)
    assert found.exit_code == code
    assert ("LESS ACCURATE" in words(found)) is (code == 1)


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        ("disagrees", 3, "`ours` disagrees, base is ok: dE excess is over 4"),
        ("crashed", 4, "`ours` crashed, base is ok"),
        ("out_of_memory", 4, "runs out of memory"),
        ("unsupported", 1, "`ours` is unsupported, base is ok"),
        ("unavailable", 1, "is unavailable"),
    ],
)
def test_statuses_that_changed(make_run: Any, make_record: MakeRecord, status: str, code: int, said: str) -> None:
    base = make_run(seed=1)
    timed = {"times": base[1].times, "gemm_ms": base[1].gemm_ms} if status == "disagrees" else {}
    broken = _with(make_record("ours", status=status, gemm_ms=None), **timed)
    found = compare_runs(base, [base[0], broken], POLICY)
    assert found.exit_code == code
    assert said in words(found)
    assert f"ok to **{status.replace('_', ' ')}**" in markdown(found)
    assert compare_runs([base[0], broken], base, POLICY).exit_code == 0  # mended
    if status in ("unsupported", "unavailable"):
        assert compare_runs([base[0], broken], [base[0], broken], POLICY).exit_code == 0
    else:
        foreseen = _with(make_record("ours", status=status, gemm_ms=None, expected=([status], "known")), **timed)
        assert compare_runs([base[0], foreseen], [base[0], foreseen], POLICY).exit_code == 0
        strict = Policy.model_validate({"rules": [{"implementation": "ours", "must_be_ok": True, "reason": "r"}]})
        judged = compare_runs([base[0], foreseen], [base[0], foreseen], strict)
        assert judged.exit_code == code and "the policy wants it ok" in words(judged)


def test_the_worst_fault_decides(make_run: Any, make_record: MakeRecord) -> None:
    base = make_run(seed=1)
    crashed = make_record("other", status="crashed", gemm_ms=None)
    wrong = make_record("ours", status="disagrees", gemm_ms=None)
    assert compare_runs(base, [base[0], wrong, crashed], POLICY).exit_code == 4
    assert compare_runs(base, [base[0], wrong], POLICY).exit_code == 3


def test_rows_that_came_and_went_are_named(make_run: Any, make_record: MakeRecord) -> None:
    base = make_run(seed=1)
    new = make_record("newcomer", gemm_ms=None)
    text = markdown(compare_runs(base, [base[1], new], POLICY))
    assert "ok, gone" in text and "ok, new" in text and "(exit 0)" in text
    strict = Policy.model_validate({"rules": [{"implementation": "baseline", "must_be_ok": True, "reason": "r"}]})
    assert compare_runs(base, [base[1]], strict).exit_code == 1


def test_too_few_rounds_are_unsure_and_the_policy_says_what_that_does(make_run: Any) -> None:
    short = make_run(seed=1, rounds=10), make_run(seed=2, rounds=10, ours=62.0)
    found = compare_runs(*short, Policy(time_margin_across=0.03))
    assert row(found).time_verdict is Verdict.UNSURE
    assert found.exit_code == 6 and "INCONCLUSIVE" in markdown(found)
    for unsure, code in (("pass", 0), ("fail", 1)):
        policy = Policy.model_validate({"time_margin_across": 0.03, "unsure": unsure})
        assert compare_runs(*short, policy).exit_code == code


def test_a_time_that_one_run_cannot_tell_is_not_compared_and_not_passed(make_run: Any) -> None:
    """Too few rounds for a ratio to the GEMM, or no samples at all: neither is `no regression`."""
    base, few = make_run(seed=1), make_run(seed=2, rounds=4, ours=90.0)
    untimed = [_with(record, times=None) for record in base]
    for head, why in ((few, "too few rounds"), (untimed, "head has no time of it")):
        found = compare_runs(base, head, POLICY)
        assert found.exit_code == 6 and why in words(found)
        assert "not compared" in markdown(found)
        assert compare_runs(base, head, Policy(unsure="pass")).exit_code == 0
    assert "base has no time of it" in words(compare_runs(untimed, base, POLICY))
    assert compare_runs(untimed, untimed, POLICY).exit_code == 0  # nobody asked for times


def test_where_base_failed_throughout_nothing_was_compared(make_run: Any, make_record: MakeRecord) -> None:
    head = make_run(seed=1)
    failed = [make_record(name, status="crashed", gemm_ms=None) for name in ("baseline", "ours")]
    found = compare_runs(failed, head, POLICY)
    assert found.exit_code == 6 and "nothing was compared** (exit 6)" in markdown(found)
    assert compare_runs([failed[0], head[1]], head, POLICY).exit_code == 0  # one row was, the other is mended


def test_a_cpus_time_is_shown_and_fails_nothing(make_run: Any) -> None:
    cpu = PROVENANCE.model_copy(update={"device": "cpu", "device_name": "CPU"})
    sides = [[_with(r, provenance=cpu) for r in make_run(ours=ms, seed=ms)] for ms in (60, 90)]
    found = compare_runs(sides[0], sides[1], POLICY)
    assert row(found).time_verdict is Verdict.SLOWER  # by its ratio to the reference: a CPU has no GEMM to speak of
    assert found.exit_code == 0 and "(SLOWER)" in markdown(found)
    assert compare_runs(sides[0], sides[1], Policy(time_devices=["cuda", "cpu"])).exit_code == 1


def test_rows_of_one_run_are_compared_round_by_round(make_run: Any) -> None:
    records = make_run(ours=65.2, seed=1)
    found = compare_within(records, [("baseline", "ours")], POLICY)
    assert [r.name for r in found.rows] == ["ours / baseline"]
    assert found.rows[0].time_verdict is Verdict.SAME
    slower = compare_within(make_run(ours=67.0, seed=1), [("baseline", "ours")], POLICY)
    assert slower.rows[0].time_verdict is Verdict.SLOWER  # by 3 %, which no two runs could tell
    assert found.rows[0].time is not None and found.rows[0].time.paired
    lenient = Policy.model_validate({"rules": [{"implementation": "ours", "time_margin": 0.1, "reason": "r"}]})
    held = compare_within(make_run(ours=67.0, seed=1), [("baseline", "ours")], lenient)
    assert held.rows[0].time_verdict is Verdict.SAME  # held to what is said of head
    apart = [records[0], _with(records[1], gemm_ms=[1.0] * len(records[1].gemm_ms))]  # of another group of workers
    refused = compare_within(apart, [("baseline", "ours")], POLICY)
    assert refused.rows[0].time_verdict is None and refused.exit_code == 6
    assert "did not play the same rounds" in words(refused)
    with pytest.raises(NothingToCompare, match="nowhere"):
        compare_within(records, [("baseline", "nowhere")], POLICY)


@pytest.mark.parametrize("model", [NOISE_AND_DRIFT, LIKE_H200])
def test_the_quotient_of_two_runs_covers_the_truth(model: NoiseModel) -> None:
    """95 % nominal; 300 pairs of runs of 20 rounds, so 92 % is 2.4 standard deviations below."""
    covered = []
    for seed in range(300):
        found = []
        for k, ours in enumerate((60.0, 66.0)):
            run = simulate({"ours": ours, "gemm": 14.0, "other": 80.0}, 20, model, 2 * seed + k)
            found.append(ratio_interval(run.turns["ours"], run.turns["gemm"]))
        assert found[0] is not None and found[1] is not None
        ratio = quotient(found[1], found[0])
        covered.append(ratio.low <= 1.1 <= ratio.high)
    assert np.mean(covered) >= 0.92


def test_the_library_compares_runs_on_disk(make_run: Any, tmp_path: Path) -> None:
    """As a stranger would, with and without a policy of its own."""
    for name, ours in (("base", 60.0), ("head", 67.0)):
        (tmp_path / name).mkdir()
        lines = [record.model_dump_json() for record in make_run(ours=ours, seed=len(name))]
        (tmp_path / name / "records.jsonl").write_text("\n".join(lines) + "\n")
    found = harness.compare(tmp_path / "base", str(tmp_path / "head"))
    assert (found.exit_code, row(found).time_verdict) == (1, Verdict.SLOWER)
    assert found.markdown() == markdown(found)
    (tmp_path / "lax.yaml").write_text("name: lax\ntime_margin_across: 0.5\n")
    assert harness.compare(tmp_path / "base", tmp_path / "head", policy=tmp_path / "lax.yaml").exit_code == 0
    within = harness.compare(tmp_path / "head", rows=[("baseline", "ours")])
    assert [row.name for row in within.rows] == ["ours / baseline"]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        harness.compare(tmp_path / "nowhere", tmp_path / "head")


def test_what_base_lacks_a_package_for_is_not_passed_by_a_gate(make_run: Any, make_record: MakeRecord) -> None:
    baseline, ours = make_run()
    trees = [
        _with(record, implementation=f"{record.implementation}@{end}") for record in (baseline, ours) for end in ENDS
    ]
    lacking = make_record("ours@base", "unavailable", reason="No module named 'liger_kernel'")
    pairs = [("baseline@base", "baseline@head"), ("ours@base", "ours@head")]
    assert compare_within(trees, pairs, POLICY).exit_code == 0
    found = compare_within([lacking if r.implementation == "ours@base" else r for r in trees], pairs, POLICY)
    assert found.exit_code == 6
    assert words(found) == "`ours` could not be compared: base is unavailable: No module named 'liger_kernel'"
    assert compare_runs([baseline, _with(lacking, implementation="ours")], [baseline, ours], POLICY).exit_code == 0
