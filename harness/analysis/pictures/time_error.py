"""Time against error: what accuracy costs, each implementation a point, and a line through one that has a knob."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.analysis.formats import number, setting
from harness.analysis.pictures.labels import Label, place_beside
from harness.analysis.pictures.picture import (
    DISAGREES_COLOUR,
    FLOOR_COLOUR,
    MOST_PANELS,
    NO_GPU_TIMES,
    OK_COLOUR,
    SMALL,
    WIDTH_INCHES,
    Picture,
    Skipped,
    agrees,
    first_of,
    plain_log_ticks,
    say_left_out,
    timed_rows,
)
from harness.analysis.row import Row, to_row
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
        if _place(to_row(record)) is not None:
            cases.setdefault(record.case_id, []).append(record)
    cases = {case: rows for case, rows in cases.items() if len(rows) > 1}
    if not cases:
        return Skipped(STEM, "no case has two timed rows with an excess and a GEMM")
    shown = list(cases.values())[:MOST_PANELS]
    figure = Figure(figsize=(WIDTH_INCHES, 3.3 * len(shown) + 0.5), layout="constrained")
    panels = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    for axes, case in zip(panels, shown, strict=True):
        _points(axes, case)
    figure.legend(handles=_key(), loc="outside upper center", ncols=4, fontsize=SMALL, frameon=False)
    say_left_out(figure, first_of(len(shown), len(cases), "cases"))
    figure.draw_without_rendering()  # lays out: names are placed by where points are on the page
    figure.set_layout_engine("none")
    for axes, case in zip(panels, shown, strict=True):
        place_beside(axes, [_label(record) for record in case], SMALL)
    return Picture(STEM, figure)


def knobs(records: Sequence[Record]) -> list[list[Record]]:
    """Rows that are one implementation with other options, by their error; each list has two at least."""
    same: dict[str, list[Record]] = {}
    for record in records:
        if record.path is not None:
            same.setdefault(record.path, []).append(record)
    return [sorted(rows, key=lambda r: _place(to_row(r)) or (0.0, 0.0)) for rows in same.values() if len(rows) > 1]


def _points(axes: Axes, records: Sequence[Record]) -> None:
    case, limit = records[0].case, records[0].max_excess
    axes.set_xscale("log")
    axes.set_yscale("log")
    places = [place for record in records if (place := _place(to_row(record))) is not None]
    for rows in knobs(records):
        along = [place for record in rows if (place := _place(to_row(record))) is not None]
        axes.plot(*zip(*along, strict=True), color=OK_COLOUR, alpha=0.45, linewidth=2, zorder=2)
    for record, (x, y) in zip(records, places, strict=True):
        colour = OK_COLOUR if agrees(record) else DISAGREES_COLOUR
        inside = colour if agrees(record) else "white"
        axes.plot(x, y, "o", color=colour, markerfacecolor=inside, markeredgewidth=1.4, markersize=6, zorder=4)
    xs, ys = zip(*places, strict=True)
    left, right = min(*xs, EAGER), max(*xs, limit)
    low, high = min(ys), max(ys)
    # room right of the last point for its name
    axes.set_xlim(left / (right / left) ** 0.06 / 1.02, right * (right / left) ** 0.2 * 1.02)
    axes.set_ylim(low / (high / low) ** 0.14 / 1.05, high * (high / low) ** 0.14 * 1.05)
    for at, words in ((EAGER, "eager"), (limit, f"limit {number(limit)}")):
        axes.axvline(at, color=FLOOR_COLOUR, linestyle=":", linewidth=1.2, zorder=1)
        axes.annotate(
            words, (at, 0.98), xycoords=("data", "axes fraction"), xytext=(4, -1), textcoords="offset points",
            va="top", fontsize=SMALL, color=FLOOR_COLOUR, style="italic",
        )  # fmt: skip
    axes.set_title(f"{setting(case)}, β = {number(case.label_smoothing)}", fontsize=SMALL + 1.5, loc="left")
    axes.set_xlabel("excess: the larger of dE's and dC's error over eager arithmetic's", fontsize=SMALL + 1)
    axes.set_ylabel("fwd+bwd, GEMMs", fontsize=SMALL + 1)
    axes.grid(alpha=0.25, which="major")
    plain_log_ticks(axes, "x")
    plain_log_ticks(axes, "y")


def _place(row: Row) -> tuple[float, float] | None:
    """Excess and GEMMs; None where a row has none, or none above 0 to show on a logarithmic axis."""
    excess = max((e for e in (row.grad_input_excess, row.grad_weight_excess) if e is not None), default=0.0)
    return (excess, row.fwd_bwd_gemms) if excess > 0 and row.fwd_bwd_gemms else None


def _label(record: Record) -> Label:
    x, y = _place(to_row(record)) or (EAGER, EAGER)
    return Label(record.implementation, x, y, "#222222" if agrees(record) else DISAGREES_COLOUR)


def _key() -> list[Line2D]:
    return [
        Line2D([], [], color=OK_COLOUR, marker="o", linestyle="", label="gradients agree"),
        Line2D([], [], color=DISAGREES_COLOUR, marker="o", linestyle="", markerfacecolor="white", markeredgewidth=1.4,
               label="not ok, never ranked"),
        Line2D([], [], color=OK_COLOUR, alpha=0.45, linewidth=2, label="one implementation, other options"),
        Line2D([], [], color=FLOOR_COLOUR, linestyle=":", label="eager's error, the limit"),
    ]  # fmt: skip
