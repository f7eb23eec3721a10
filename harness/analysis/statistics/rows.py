"""All of it for the rows of a run: what a table can print beside a median."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.analysis.statistics.bootstrap import Interval
from harness.analysis.statistics.detection import Finding, allocation, bimodality, drift, order_bias, too_wide
from harness.analysis.statistics.ratio import NoiseFloor, noise_floor, ratio_interval, time_interval
from harness.analysis.statistics.throttling import throttling
from harness.analysis.statistics.turns import (
    Turns,
    again_turns_of,
    gemm_turns_of,
    paired,
    places_of,
    timed_turns,
    turns_of,
)
from harness.record import Record, Times

TARGET_INTERVAL = 0.02  # records do not hold the suite's: what the reports call too wide
GEMM = "GEMM"


@dataclass(frozen=True)
class RowStatistics:
    """Intervals of one row's fwd+bwd. None where there is nothing to compare with, or too few rounds."""

    case_id: str
    implementation: str
    time_ms: Interval | None
    to_reference: Interval | None  # paired ratio; None for the reference itself
    to_gemm: Interval | None  # paired ratio to the GEMM of the same rounds; None on a CPU
    noise: NoiseFloor | None  # of the row against its second worker, where it has one
    findings: tuple[Finding, ...]


def row_statistics(records: Sequence[Record], target_interval: float = TARGET_INTERVAL) -> list[RowStatistics]:
    """One per timed record, in the order of the records."""
    return [
        _statistics(record, record.times, turns, _reference_turns(record, records), target_interval)
        for record in records
        if record.times is not None and (turns := turns_of(record)) is not None
    ]


def ratio_to_gemm(record: Record) -> Interval | None:
    """The row's fwd+bwd in GEMMs of the same rounds; None on a CPU, without a GEMM, and for too few rounds."""
    turns = turns_of(record)
    gemm = gemm_turns_of(record) if record.provenance.device != "cpu" else None
    return ratio_interval(turns, gemm) if turns is not None and gemm is not None else None


def gemm_findings(record: Record) -> list[Finding]:
    """What is to be said of the GEMM beside the record: it is in every ratio to it."""
    gemm = gemm_turns_of(record)
    found = drift(gemm) if gemm is not None and record.provenance.device != "cpu" else None
    return [found] if found is not None else []


def _statistics(
    record: Record, times: Times, turns: Turns, base: Turns | None, target_interval: float
) -> RowStatistics:
    gemm = gemm_turns_of(record) if record.provenance.device != "cpu" else None
    again = again_turns_of(record)
    time_ms, to_reference = time_interval(turns), ratio_interval(turns, base) if base is not None else None
    found = (
        too_wide(turns.name, to_reference or time_ms, target_interval),
        drift(turns),
        _order_bias(turns, gemm, times),
        bimodality(turns),
        throttling(turns.name, times),
        allocation(turns.name, times.device_allocations),
    )
    return RowStatistics(
        case_id=record.case_id,
        implementation=record.implementation,
        time_ms=time_ms,
        to_reference=to_reference,
        to_gemm=ratio_to_gemm(record),
        noise=noise_floor(turns, again) if again is not None else None,
        findings=tuple(finding for finding in found if finding is not None),
    )


def _order_bias(turns: Turns, gemm: Turns | None, times: Times) -> Finding | None:
    """Asked of the ratio to the GEMM, from which the drift has cancelled; of the times where there is none."""
    common = turns if gemm is None else paired(turns, gemm)
    found = order_bias(common, places_of(times, common))
    return None if found is None else Finding(found.kind, turns.name, found.size, found.sentence)


def _reference_turns(record: Record, records: Sequence[Record]) -> Turns | None:
    """The reference in the record's rounds: of its own group of workers, which has a GEMM of its own."""
    if record.implementation == record.reference:
        return None
    own = [other for other in records if (other.implementation, other.case_id) == (record.reference, record.case_id)]
    if record.probes is not None and record.probes.reference is not None:
        amortised_ms = own[0].amortised_ms if own else 0.0  # told once, where the reference is judged
        return timed_turns(record.reference, record.probes.reference, amortised_ms=amortised_ms)
    return next((turns_of(other) for other in own if other.gemm_ms == record.gemm_ms), None)
