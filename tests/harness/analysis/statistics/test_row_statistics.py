"""What a table can print beside a median: per record, from records alone, without torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from harness.analysis.rows import Rows
from harness.analysis.statistics.detection import Kind
from harness.analysis.statistics.error_rates import simulated_case
from harness.analysis.statistics.ratio import noise_floor, ratio_interval, time_interval
from harness.analysis.statistics.rows import RowStatistics, row_statistics
from harness.analysis.statistics.simulation import LIKE_H200, NOISE_AND_DRIFT, QUIET, SimulatedRun
from harness.analysis.tables import markdown_report
from harness.record import Probes, Record, Times

MakeRecord = Callable[..., Record]


def _records(run: SimulatedRun, make_record: MakeRecord) -> list[Record]:
    gemm_ms = run.turns["gemm"].values.ravel().tolist()
    rows = {"liger": "head", "baseline": "base"}
    return [
        make_record(name, times=run.times(row)).model_copy(update={"gemm_ms": gemm_ms}) for name, row in rows.items()
    ]


def _by_name(found: list[RowStatistics]) -> dict[str, RowStatistics]:
    return {row.implementation: row for row in found}


def test_intervals_of_every_timed_row(make_record: MakeRecord) -> None:
    run = simulated_case(QUIET, 12, seed=0, slowdown=0.05)
    records = [*_records(run, make_record), make_record("cce", status="unavailable")]
    found = row_statistics(records)
    assert [row.implementation for row in found] == ["liger", "baseline"]
    liger, baseline = found
    turns = run.turns
    assert liger.time_ms == time_interval(turns["head"])
    assert liger.to_reference == ratio_interval(turns["head"], turns["base"])
    assert liger.to_gemm == ratio_interval(turns["head"], turns["gemm"])
    assert baseline.to_reference is None and baseline.to_gemm is not None
    assert liger.findings == baseline.findings == ()


def test_intervals_do_not_depend_on_the_order_of_records(make_record: MakeRecord) -> None:
    records = _records(simulated_case(NOISE_AND_DRIFT, 12, seed=0), make_record)
    assert _by_name(row_statistics(records)) == _by_name(row_statistics(records[::-1]))


def test_a_row_that_played_longer_is_paired_by_common_rounds(make_record: MakeRecord) -> None:
    long, short = _records(simulated_case(QUIET, 20, seed=0), make_record)
    assert short.times is not None
    lists = {name: values[:24] for name, values in short.times.model_dump().items() if isinstance(values, list)}
    short = short.model_copy(update={"times": Times(**(short.times.model_dump() | lists))})
    found = _by_name(row_statistics([long, short]))["liger"]
    assert found.to_reference is not None and found.to_gemm is not None
    assert (found.to_reference.rounds, found.to_gemm.rounds) == (12, 20)


def test_a_reference_of_another_group_played_other_rounds(make_record: MakeRecord) -> None:
    head, base = _records(simulated_case(QUIET, 12, seed=0), make_record)
    other = base.model_copy(update={"gemm_ms": [time_ms * 1.01 for time_ms in base.gemm_ms]})
    assert _by_name(row_statistics([head, other]))["liger"].to_reference is None


def test_findings_of_a_drifting_throttled_row(make_record: MakeRecord) -> None:
    run = simulated_case(replace(NOISE_AND_DRIFT, throttle_step=0.1), 20, seed=0)
    rows = _by_name(row_statistics(_records(run, make_record)))
    assert {finding.kind for finding in rows["liger"].findings} == {Kind.DRIFT, Kind.THROTTLING}  # its ratio is known
    assert {finding.kind for finding in rows["baseline"].findings} == {Kind.DRIFT, Kind.THROTTLING, Kind.TOO_WIDE}
    assert {finding.row for finding in rows["liger"].findings} == {"liger"}


def test_a_ratio_that_is_not_known_says_so(make_record: MakeRecord) -> None:
    run = simulated_case(LIKE_H200, 10, seed=0)
    found = _by_name(row_statistics(_records(run, make_record)))["liger"]
    assert found.to_reference is not None
    assert {finding.kind: finding.size for finding in found.findings} == {
        Kind.TOO_WIDE: found.to_reference.relative_width
    }


def test_a_row_that_is_slower_late_in_a_round_is_found_from_the_places_in_its_record(make_record: MakeRecord) -> None:
    run = simulated_case(replace(NOISE_AND_DRIFT, order_bias=0.05), 30, seed=1)
    liger, baseline = _records(run, make_record)
    without = liger.model_copy(update={"times": liger.times and liger.times.model_copy(update={"position": []})})
    kinds = {finding.kind for finding in _by_name(row_statistics([liger, baseline]))["liger"].findings}
    assert Kind.ORDER_BIAS in kinds
    kinds = {finding.kind for finding in _by_name(row_statistics([without, baseline]))["liger"].findings}
    assert Kind.ORDER_BIAS not in kinds


def test_an_a_a_gives_the_noise_of_its_row_alone(make_record: MakeRecord) -> None:
    run = simulated_case(QUIET, 12, seed=0)
    liger, baseline = _records(run, make_record)
    again = baseline.model_copy(update={"again": run.times("head")})
    found = _by_name(row_statistics([liger, again]))
    assert found["liger"].noise is None
    assert found["baseline"].noise == noise_floor(run.turns["base"], run.turns["head"])


def test_a_reference_of_another_group_is_in_the_probes(make_record: MakeRecord) -> None:
    run = simulated_case(QUIET, 12, seed=0)
    head, base = _records(run, make_record)
    probes = Probes(reference=run.times("base"))
    stranger = head.model_copy(update={"gemm_ms": [1.0] * 24, "probes": probes})
    found = _by_name(row_statistics([stranger, base]))["liger"]
    assert found.to_reference == ratio_interval(run.turns["head"], run.turns["base"])


def test_a_cpu_has_no_time_in_gemms(make_record: MakeRecord) -> None:
    head = _records(simulated_case(QUIET, 12, seed=0), make_record)[0]
    on_cpu = head.model_copy(update={"provenance": head.provenance.model_copy(update={"device": "cpu"})})
    assert row_statistics([on_cpu])[0].to_gemm is None


def test_three_rounds_have_no_intervals(make_record: MakeRecord) -> None:
    found = row_statistics([make_record("baseline"), make_record("liger")])
    assert [(row.time_ms, row.to_reference, row.to_gemm, row.findings) for row in found] == [(None, None, None, ())] * 2


@pytest.mark.parametrize("module", ["rows", "error_rates"])
def test_reading_statistics_imports_no_torch(module: str) -> None:
    program = f"import sys, harness.analysis.statistics.{module}; print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "False\n"
    )


def _telling(record: Record, **figures: float) -> Record:
    assert record.agreement is not None
    return record.model_copy(update={"agreement": record.agreement.model_copy(update={"figures": figures})})


@pytest.mark.parametrize(
    "figures",
    [{"amortised_ms": 6.0, "amortised_calls": 10.0, "order_ms": 60.0}, {"order_ms": 3000.0}],
    ids=["as told", "of an older record"],
)
def test_what_is_done_once_in_many_calls_is_part_of_time_and_ratios(
    make_record: MakeRecord, figures: dict[str, float]
) -> None:
    records = _records(simulated_case(QUIET, 12, seed=0), make_record)
    told = [_telling(records[0], **figures), records[1]]
    before, after = _by_name(row_statistics(records)), _by_name(row_statistics(told))
    free, paid = before["liger"], after["liger"]
    assert free.time_ms and paid.time_ms and free.to_reference and paid.to_reference and free.to_gemm and paid.to_gemm
    assert paid.time_ms.estimate == pytest.approx(free.time_ms.estimate + 6.0)
    grown = 1 + 6.0 / free.time_ms.estimate
    assert paid.to_reference.estimate == pytest.approx(free.to_reference.estimate * grown, rel=1e-2)
    assert paid.to_gemm.estimate == pytest.approx(free.to_gemm.estimate * grown, rel=1e-2)
    assert after["baseline"] == before["baseline"]
    row = Rows(told).of(told[0])
    assert (row.amortised_ms, row.fwd_bwd_ms) == (6.0, pytest.approx(Rows(records).of(records[0]).fwd_bwd_ms + 6.0))
    assert told[0].times == records[0].times  # as measured


def test_a_reference_that_keeps_work_pays_in_every_group_and_against_itself(make_record: MakeRecord) -> None:
    head, base = _records(simulated_case(QUIET, 12, seed=0), make_record)
    reference = _telling(base, amortised_ms=base.times.fwd_bwd_ms[0]).model_copy(update={"again": base.times})
    alone = head.model_copy(update={"probes": Probes(reference=base.times), "gemm_ms": [1.0] * len(head.gemm_ms)})
    beside, stranger = _by_name(row_statistics([head, reference])), _by_name(row_statistics([alone, reference]))
    free = _by_name(row_statistics([head, base]))["liger"].to_reference
    assert free is not None
    for found in (beside["liger"].to_reference, stranger["liger"].to_reference):
        assert found is not None and found.estimate == pytest.approx(free.estimate / 2, rel=1e-2)
    assert beside["baseline"].noise is not None and beside["baseline"].noise.ratio.estimate == 1.0


def test_samples_that_ask_the_device_for_memory_are_a_finding(make_record: MakeRecord) -> None:
    records = _records(simulated_case(QUIET, 12, seed=0), make_record)
    asked = [0] * 24
    clean, asking = (
        records[0].model_copy(update={"times": records[0].times.model_copy(update={"device_allocations": counts})})
        for counts in (asked, [*asked[:20], 2, 0, 1, 0])
    )
    assert _by_name(row_statistics([clean]))["liger"].findings == ()
    (finding,) = _by_name(row_statistics([asking]))["liger"].findings
    assert (finding.kind, finding.sentence) == (Kind.ALLOCATION, "in 2 of 24 samples, 3 times")
    report = markdown_report([asking, records[1]])
    assert "Asked the device for memory (cudaMalloc) while timed: liger in 2 of 24 samples, 3 times." in report


def test_what_is_not_distinguishably_slower_than_the_fastest_is_fast_too(make_record: MakeRecord) -> None:
    tie, base = _records(simulated_case(LIKE_H200, 12, seed=0), make_record)
    times = [tie.times.fwd_bwd_ms, base.times.fwd_bwd_ms]
    assert sorted(times[0]) != sorted(times[1])
    both = {"liger", "baseline"}
    assert Rows([tie, base]).fastest([tie, base]) == both
    slow = _records(simulated_case(LIKE_H200, 12, seed=0, slowdown=0.2), make_record)
    assert Rows(slow).fastest(slow) == {"baseline"}
    assert Rows(slow).fastest(slow[:1]) == {"liger"} and Rows(slow).fastest([]) == set()
    other_rounds = base.model_copy(update={"gemm_ms": [1.0] * len(base.gemm_ms)})
    assert len(Rows([tie, other_rounds]).fastest([tie, other_rounds])) == 1
    table = next(part for part in markdown_report([tie, base]).split("\n\n") if "fwd+bwd ms" in part)
    cells = [line.split("|")[7].strip() for line in table.splitlines() if line.split("|")[1].strip() in both]
    assert len(cells) == 2 and all(cell.startswith("**") for cell in cells)
