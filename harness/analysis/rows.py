"""The rows of a run with their statistics, which need the records of the whole case."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.analysis.row import Row, to_row
from harness.analysis.statistics.detection import Finding
from harness.analysis.statistics.rows import RowStatistics, row_statistics
from harness.record import Record

_Key = tuple[str, str]  # case id, implementation: a run has one record of each


class Rows:
    """Every record of a run as a row, in the order of the records; computed once for all tables."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._statistics = {(s.case_id, s.implementation): s for s in row_statistics(records)}
        self._rows = {_key(record): to_row(record, self._statistics.get(_key(record))) for record in records}

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def of(self, record: Record) -> Row:
        """The record's row."""
        return self._rows[_key(record)]

    def statistics(self, record: Record) -> RowStatistics | None:
        """Its intervals and findings; None if it was not timed."""
        return self._statistics.get(_key(record))

    def findings(self, record: Record) -> tuple[Finding, ...]:
        """What may be wrong with its times."""
        found = self.statistics(record)
        return found.findings if found is not None else ()


def _key(record: Record) -> _Key:
    return record.case_id, record.implementation
