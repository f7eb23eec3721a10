"""Time against error: what accuracy costs, each implementation a point, and a line through one that has a knob."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from harness.analysis.formats import number
from harness.analysis.pictures.picture import FLOOR_COLOUR, NO_GPU_TIMES, OK_COLOUR, Picture, Skipped, timed_rows
from harness.analysis.pictures.points import NOTE, points
from harness.analysis.row import to_row
from harness.analysis.statistics.rows import ratio_to_gemm
from harness.record import Record

STEM = "time-error"
EAGER = 1.0  # the excess of eager arithmetic, by definition


def time_error(records: Sequence[Record]) -> Picture | Skipped:
    """A panel per case: fwd+bwd in GEMMs over the larger excess of dE and dC, both logarithmic."""
    timed = timed_rows(records)
    if not timed:
        return Skipped(STEM, NO_GPU_TIMES)
    cases: dict[str, list[Record]] = {}
    for record in timed:
        if min(_place(record)) > 0:  # a logarithmic axis has no place for others
            cases.setdefault(record.case_id, []).append(record)
    cases = {case: rows for case, rows in cases.items() if len(rows) > 1}
    if not cases:
        return Skipped(STEM, "no case has two timed rows with an excess and a GEMM")
    axis_names = "excess: the larger of dE's and dC's error over eager arithmetic's", "fwd+bwd, GEMMs"
    return points(STEM, cases, _place, _draw, axis_names, _key())


def knobs(records: Sequence[Record]) -> list[list[Record]]:
    """Rows that are one implementation with other options, by their error; each list has two at least."""
    same: dict[str, list[Record]] = {}
    for record in records:
        if record.path is not None:
            same.setdefault(record.path, []).append(record)
    return [sorted(rows, key=_place) for rows in same.values() if len(rows) > 1]


def _draw(axes: Axes, records: Sequence[Record]) -> None:
    limit = records[0].max_excess
    for rows in knobs(records):
        along = [_place(record) for record in rows]
        axes.plot(*zip(*along, strict=True), color=OK_COLOUR, alpha=0.45, linewidth=2, zorder=2)
    xs, ys = zip(*map(_place, records), strict=True)
    left, right = min(*xs, EAGER), max(*xs, limit)
    low, high = min(ys), max(ys)
    # room right of the last point for its name
    axes.set_xlim(left / (right / left) ** 0.06 / 1.02, right * (right / left) ** 0.2 * 1.02)
    axes.set_ylim(low / (high / low) ** 0.14 / 1.05, high * (high / low) ** 0.14 * 1.05)
    for at, words in ((EAGER, "eager"), (limit, f"limit {number(limit)}")):
        axes.axvline(at, color=FLOOR_COLOUR, linestyle=":", linewidth=1.2, zorder=1)
        axes.annotate(
            words, (at, 0.98), xycoords=("data", "axes fraction"), xytext=(4, -1), textcoords="offset points",
            va="top", **NOTE,
        )  # fmt: skip


def _place(record: Record) -> tuple[float, float]:
    """Excess, and GEMMs as tables have them; 0 for what a row has not."""
    row, paired = to_row(record), ratio_to_gemm(record)
    excess = max((e for e in (row.grad_input_excess, row.grad_weight_excess) if e is not None), default=0.0)
    return excess, (row.fwd_bwd_gemms if paired is None else paired.estimate) or 0.0


def _key() -> list[Line2D]:
    return [
        Line2D([], [], color=OK_COLOUR, alpha=0.45, linewidth=2, label="one implementation, other options"),
        Line2D([], [], color=FLOOR_COLOUR, linestyle=":", label="eager's error, the limit"),
    ]
