"""How well a run repeats: two runs of one suite, row by row, the ratios that are said to hold elsewhere too.

A ratio to the GEMM of the same rounds is what may be compared between two machines; what it differs by between two runs
of the same code is the least that a comparison across machines can see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from harness.analysis.formats import DASH, counted, figures_table, number, percent, ratio, setting, three_places
from harness.analysis.heading import heading
from harness.analysis.row import Row
from harness.analysis.rows import Rows
from harness.record import Record

CLOSE = 0.02  # what runs of the same code should agree to


@dataclass(frozen=True)
class RowSpread:
    """A row that both runs timed."""

    first: Row
    second: Row

    @property
    def to_gemm(self) -> float | None:
        """By how much the second run's ratio to the GEMM differs, as a fraction."""
        return _change(self.first.fwd_bwd_gemms, self.second.fwd_bwd_gemms)

    @property
    def to_reference(self) -> float | None:
        """The same for the ratio to the reference."""
        return _change(self.first.fwd_bwd_to_reference, self.second.fwd_bwd_to_reference)


def spreads(first: Sequence[Record], second: Sequence[Record]) -> list[RowSpread]:
    """The rows that were timed in both runs, in the order of the first."""
    others = {(row.case, row.implementation): row for row in Rows(second)}
    pairs = [(row, others.get((row.case, row.implementation))) for row in Rows(first)]
    return [RowSpread(row, other) for row, other in pairs if other is not None and row.samples and other.samples]


def share_within(changes: Sequence[float], limit: float = CLOSE) -> float:
    """The share of `changes` that are at most `limit`, up or down. Raises ValueError if there are none."""
    if not changes:
        raise ValueError("no change to count: the runs share no row with a ratio")
    return sum(abs(change) <= limit for change in changes) / len(changes)


def spread_report(first: Sequence[Record], second: Sequence[Record]) -> str:
    """Both runs' heads, how many ratios repeat, and a table; markdown without a newline at its end."""
    found = spreads(first, second)
    lines = ["# How well two runs agree", ""]
    for name, records in (("First", first), ("Second", second)):
        if records:
            lines += [f"{name} run:", "", *(line for line in heading(records) if line.startswith("- ")), ""]
    if not found:
        return "\n".join([*lines, "No row was timed in both runs."])
    lines += [f"- {line}" for line in _summary(found)]
    return "\n".join([*lines, "", _table(found, {record.case_id: setting(record.case) for record in first})])


def _summary(found: Sequence[RowSpread]) -> list[str]:
    lines = [f"{counted(len(found), 'row')} timed in both"]
    for name, changes in (
        ("the GEMM", [spread.to_gemm for spread in found]),
        ("the reference", [spread.to_reference for spread in found]),
    ):
        known = [change for change in changes if change is not None]
        if known:
            sizes = [abs(change) for change in known]
            lines.append(
                f"ratio to {name}: {percent(round(share_within(known), 3))} of {len(known)} within {percent(CLOSE)}; "
                f"median {percent(median(sizes))}, at most {percent(max(sizes))}"
            )
    return lines


def _table(found: Sequence[RowSpread], settings: dict[str, str]) -> str:
    body, last = [], None
    for spread in found:
        case = f"{settings[spread.first.case]}, β = {number(spread.first.label_smoothing)}"
        if case != last:
            body.append([f"*{case}*", *[""] * 6])
            last = case
        first, second = spread.first, spread.second
        body.append(
            [
                first.implementation,
                ratio(first.fwd_bwd_gemms),
                ratio(second.fwd_bwd_gemms),
                _signed(spread.to_gemm),
                *(DASH if v is None else three_places(v) for v in _references(spread)),
                _signed(spread.to_reference),
            ]
        )
    headers = ["implementation", "GEMMs, first", "second", "change", "to reference, first", "second", "change"]
    return figures_table(headers, body)


def _references(spread: RowSpread) -> tuple[float | None, float | None]:
    return spread.first.fwd_bwd_to_reference, spread.second.fwd_bwd_to_reference


def _change(first: float | None, second: float | None) -> float | None:
    return second / first - 1 if first and second is not None else None


def _signed(change: float | None) -> str:
    return DASH if change is None else f"{100 * change:+.1f} %"
