"""The rows of a run with their statistics, which need the records of the whole case."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.analysis.row import Row, to_row
from harness.analysis.statistics.detection import Finding
from harness.analysis.statistics.ratio import ratio_interval
from harness.analysis.statistics.rows import RowStatistics, row_statistics
from harness.analysis.statistics.turns import turns_of
from harness.record import Record

_Key = tuple[str, str]  # case id, implementation: a run has one record of each


class Rows:
    """Every record of a run as a row, in the order of the records; computed once for all tables."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._statistics = {(s.case_id, s.implementation): s for s in row_statistics(records)}
        self._rows = {_key(record): to_row(record, self._statistics.get(_key(record))) for record in records}
        self._fastest: dict[tuple[_Key, ...], set[str]] = {}

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def of(self, record: Record) -> Row:
        """The record's row."""
        return self._rows[_key(record)]

    def statistics(self, record: Record) -> RowStatistics | None:
        """Its intervals and findings; None if it was not timed."""
        return self._statistics.get(_key(record))

    def fastest(self, records: Sequence[Record]) -> set[str]:
        """Names of those records of one case whose fwd+bwd nothing shows to be slower than the shortest median.

        That one, and every row whose paired ratio to it has an interval that reaches 1. Where they played no common
        rounds, in groups or too few for an interval, only the shortest is known to be.
        """
        asked = tuple(_key(record) for record in records)
        if asked not in self._fastest:
            timed = [(time, r) for r in records if (time := self.of(r).fwd_bwd_ms) is not None]
            best, first = min(timed, key=lambda one: one[0], default=(None, None))
            self._fastest[asked] = {
                r.implementation for time, r in timed if time == best or (first is not None and _ties(r, first))
            }
        return self._fastest[asked]

    def findings(self, record: Record) -> tuple[Finding, ...]:
        """What may be wrong with its times."""
        found = self.statistics(record)
        return found.findings if found is not None else ()


def _ties(record: Record, first: Record) -> bool:
    """Whether the record's time is not distinguishable from that of `first`, the shortest."""
    head, base = turns_of(record), turns_of(first)
    if head is None or base is None or record.gemm_ms != first.gemm_ms:  # other rounds
        return False
    ratio = ratio_interval(head, base)
    return ratio is not None and ratio.low <= 1


def _key(record: Record) -> _Key:
    return record.case_id, record.implementation
