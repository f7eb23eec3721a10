"""All of it for the rows of a run: what a table can print beside a median."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.analysis.statistics.bootstrap import Interval
from harness.analysis.statistics.detection import Finding, bimodality, drift, too_wide
from harness.analysis.statistics.ratio import ratio_interval, time_interval
from harness.analysis.statistics.throttling import throttling
from harness.analysis.statistics.turns import Turns, gemm_turns_of, turns_of
from harness.record import Record, Times

TARGET_INTERVAL = 0.02  # records do not hold the suite's: what the reports call too wide


@dataclass(frozen=True)
class RowStatistics:
    """Intervals of one row's fwd+bwd. None where there is nothing to compare with, or too few rounds."""

    case_id: str
    implementation: str
    time_ms: Interval | None
    to_reference: Interval | None  # paired ratio; None for the reference itself
    to_gemm: Interval | None  # paired ratio to the GEMM of the same rounds; None on a CPU
    findings: tuple[Finding, ...]


def row_statistics(records: Sequence[Record], target_interval: float = TARGET_INTERVAL) -> list[RowStatistics]:
    """One per timed record, in the order of the records."""
    return [
        _statistics(record, record.times, turns, _reference_of(record, records), target_interval)
        for record in records
        if record.times is not None and (turns := turns_of(record)) is not None
    ]


def _statistics(
    record: Record, times: Times, turns: Turns, reference: Record | None, target_interval: float
) -> RowStatistics:
    base = turns_of(reference) if reference is not None else None
    gemm = gemm_turns_of(record) if record.provenance.device != "cpu" else None
    time_ms = time_interval(turns)
    found = (
        too_wide(turns.name, time_ms, target_interval),
        drift(turns),
        bimodality(turns),
        throttling(turns.name, times),
    )
    return RowStatistics(
        case_id=record.case_id,
        implementation=record.implementation,
        time_ms=time_ms,
        to_reference=ratio_interval(turns, base) if base is not None else None,
        to_gemm=ratio_interval(turns, gemm) if gemm is not None else None,
        findings=tuple(finding for finding in found if finding is not None),
    )


def _reference_of(record: Record, records: Sequence[Record]) -> Record | None:
    """The reference that played the same rounds: groups of a case (`harness.scheduler`) differ in their GEMM."""
    for other in records:
        if (
            other.implementation == record.reference != record.implementation
            and other.case_id == record.case_id
            and other.gemm_ms == record.gemm_ms
        ):
            return other
    return None
