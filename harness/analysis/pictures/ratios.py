"""Who is faster than the reference, and how surely: paired ratios, their 95 % intervals, and the noise of the A/A."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from harness.analysis.formats import number, setting, three_places
from harness.analysis.pictures.picture import (
    DISAGREES_COLOUR,
    FLOOR_COLOUR,
    MOST_PANELS,
    NO_GPU_TIMES,
    OK_COLOUR,
    SMALL,
    TINY,
    WIDTH_INCHES,
    Picture,
    Skipped,
    agrees,
    first_of,
    plain_log_ticks,
    say_left_out,
    timed_rows,
)
from harness.analysis.rows import Rows
from harness.analysis.statistics.bootstrap import Interval
from harness.record import Record

STEM = "ratios"
_LANE_INCHES = 0.21

Lane = tuple[Record, Interval]


def ratios(records: Sequence[Record]) -> Picture | Skipped:
    """A panel per case, two side by side: a lane per row that has an interval, the fastest on top."""
    timed = timed_rows(records)
    if not timed:
        return Skipped(STEM, NO_GPU_TIMES)
    rows = Rows(records)
    cases: dict[str, list[Lane]] = {}
    for record in timed:
        found = rows.statistics(record)
        if found is not None and found.to_reference is not None:
            cases.setdefault(record.case_id, []).append((record, found.to_reference))
    if not cases:
        return Skipped(STEM, "no row has a ratio to the reference with an interval")
    shown = [sorted(lanes, key=lambda lane: lane[1].estimate) for lanes in list(cases.values())[:MOST_PANELS]]
    columns = min(2, len(shown))
    lines = -(-len(shown) // columns)
    tallest = _LANE_INCHES * max(map(len, shown))
    figure = Figure(figsize=(WIDTH_INCHES, (tallest + 0.9) * lines + 0.5), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, lanes in zip(panels, shown, strict=False):
        _draw(axes, lanes, _noise(lanes[0][0], records, rows))
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    figure.legend(handles=_key(), loc="outside upper center", ncols=4, fontsize=SMALL, frameon=False)
    say_left_out(figure, first_of(len(shown), len(cases), "cases"))
    return Picture(STEM, figure)


def _draw(axes: Axes, lanes: Sequence[Lane], noise: float | None) -> None:
    record = lanes[0][0]
    if noise is not None:
        axes.axvspan(1 / (1 + noise), 1 + noise, color="#000000", alpha=0.12, linewidth=0, zorder=0)
    axes.axvline(1, color=FLOOR_COLOUR, linewidth=1, zorder=1)
    axes.set_xscale("log")
    for place, (row, ratio) in enumerate(lanes):
        colour = OK_COLOUR if agrees(row) else DISAGREES_COLOUR
        axes.plot(
            [ratio.low, ratio.high],
            [place, place],
            color=colour,
            alpha=0.45,
            linewidth=6,
            solid_capstyle="butt",
            zorder=2,
        )
        inside = colour if agrees(row) else "white"
        axes.plot(ratio.estimate, place, "o", color=colour, markerfacecolor=inside, markersize=3, zorder=3)
    axes.set_yticks(
        range(len(lanes)), [f"{row.implementation}  {three_places(r.estimate)}" for row, r in lanes], fontsize=TINY
    )
    for tick, (row, _) in zip(axes.get_yticklabels(), lanes, strict=True):
        tick.set_color("#222222" if agrees(row) else DISAGREES_COLOUR)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(lanes) - 0.4, -0.6)
    ends = [end for _, ratio in lanes for end in (ratio.low, ratio.high)]
    low, high = min(*ends, 1.0), max(*ends, 1.0)
    axes.set_xlim(low / 1.04, high * 1.04)
    plain_log_ticks(axes, "x")
    axes.tick_params(axis="x", labelsize=TINY)
    axes.grid(axis="x", alpha=0.25)
    axes.set_xlabel(f"fwd+bwd over {record.reference}'s", fontsize=SMALL)
    shape, _, rest = setting(record.case).partition(f", {record.case.dtype}, ")
    axes.set_title(f"{rest}, β = {number(record.case.label_smoothing)}\n{shape}", fontsize=SMALL, loc="left")


def _noise(of_case: Record, records: Sequence[Record], rows: Rows) -> float | None:
    """What the case's A/A leaves to be seen; None where it has none."""
    for record in records:
        found = rows.statistics(record) if record.case_id == of_case.case_id else None
        if found is not None and found.noise is not None:
            return found.noise.margin
    return None


def _key() -> list[Line2D | Patch]:
    return [
        Line2D([], [], color=OK_COLOUR, marker="o", markersize=3, linewidth=0, label="gradients agree"),
        Line2D(
            [], [], color=DISAGREES_COLOUR, marker="o", markerfacecolor="white", linewidth=0, markersize=3,
            label="not ok, never ranked",
        ),
        Patch(color=OK_COLOUR, alpha=0.45, linewidth=0, label="95 % interval"),
        Patch(color="#000000", alpha=0.12, linewidth=0, label="noise by the A/A"),
    ]  # fmt: skip
