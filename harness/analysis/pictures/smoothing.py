"""Time against label smoothing: who pays for β, and who does not."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.analysis.formats import number, setting
from harness.analysis.pictures.labels import spread
from harness.analysis.pictures.lines import Point, draw_line
from harness.analysis.pictures.picture import (
    DISAGREES_COLOUR,
    MOST_PANELS,
    NO_GPU_TIMES,
    SMALL,
    WIDTH_INCHES,
    Picture,
    Skipped,
    Style,
    agrees,
    first_of,
    plain_log_ticks,
    say_left_out,
    styles,
    timed_rows,
)
from harness.analysis.row import to_row
from harness.analysis.section import by_setting
from harness.record import Record

STEM = "label-smoothing"
_LINE_INCHES = 0.155  # a name at the right edge


def label_smoothing(records: Sequence[Record]) -> Picture | Skipped:
    """A panel per setting whose label smoothing varies: fwd+bwd ms over β, names at the right edge."""
    timed = timed_rows(records)
    if not timed:
        return Skipped(STEM, NO_GPU_TIMES)
    settings = [(case, lines) for case, group in by_setting(timed).items() if (lines := _lines(group))]
    if not settings:
        return Skipped(STEM, "no implementation was timed at two values of the label smoothing")
    # a suite that varies β at one place and gives 0 and 0.1 elsewhere is about that place
    most = max(len(_betas(lines)) for _, lines in settings)
    widest = [found for found in settings if len(_betas(found[1])) == most]
    shown, style = widest[:MOST_PANELS], styles(records)
    heights = [max(2.6, _LINE_INCHES * len(lines) + 1.1) for _, lines in shown]
    figure = Figure(figsize=(WIDTH_INCHES, sum(heights)), layout="constrained")
    panels = figure.subplots(len(shown), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, (case, lines), height in zip(panels, shown, heights, strict=True):
        for name, points in lines.items():
            draw_line(axes, points, style[name])
        betas = _betas(lines)
        axes.set_yscale("log")
        axes.set_xticks(betas, [number(beta) for beta in betas])
        axes.set_title(setting(case), fontsize=SMALL + 1.5, loc="left")
        axes.set_title(f"from β = {number(betas[0])} to {number(betas[-1])}", fontsize=SMALL, loc="right")
        axes.set_xlabel("label smoothing β", fontsize=SMALL + 1)
        axes.set_ylabel("fwd+bwd, ms", fontsize=SMALL + 1)
        axes.grid(alpha=0.25)
        plain_log_ticks(axes, "y")
        _names(axes, lines, style, height)
    figure.suptitle("filled: gradients agree; hollow: not ok", fontsize=SMALL + 1)
    fewer = f"settings with fewer than {most} values of β are left out" if len(widest) < len(settings) else ""
    say_left_out(figure, first_of(len(shown), len(widest), "settings") or fewer)
    return Picture(STEM, figure)


def _lines(records: Sequence[Record]) -> dict[str, list[Point]]:
    """By implementation, those with at least two values of β."""
    lines: dict[str, list[Point]] = {}
    for record in records:
        time_ms = to_row(record).fwd_bwd_ms
        if time_ms:
            point = Point(record.case.label_smoothing, time_ms, agrees(record))
            lines.setdefault(record.implementation, []).append(point)
    return {name: points for name, points in lines.items() if len({point.x for point in points}) > 1}


def _betas(lines: dict[str, list[Point]]) -> list[float]:
    return sorted({point.x for points in lines.values() for point in points})


def _names(axes: Axes, lines: dict[str, list[Point]], style: dict[str, Style], inches: float) -> None:
    """Names in a column at the right edge, each with a line to the last point of its own."""
    low, high = axes.get_ylim()
    to_fraction = axes.transScale.transform
    (_, bottom), (_, top) = to_fraction([(1, low), (1, high)])
    last = {name: max(points) for name, points in lines.items()}
    wanted = [(to_fraction((1, point.y))[1] - bottom) / (top - bottom) for point in last.values()]
    spaced = spread(wanted, _LINE_INCHES / (inches - 0.8), 0.0, 1.0)
    for (name, point), place in zip(last.items(), spaced, strict=True):
        until = "" if point.x == max(last.values()).x else f" until {number(point.x)}"
        change = _percent(point.y / min(lines[name]).y - 1)
        axes.annotate(
            f"{name}  {change}{until}", (point.x, point.y), xytext=(1.03, place), textcoords="axes fraction",
            fontsize=SMALL, va="center", color="#222222" if point.agrees else DISAGREES_COLOUR, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": style[name].colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3,
                        "relpos": (0, 0.5)},
        )  # fmt: skip


def _percent(change: float) -> str:
    rounded = round(100 * change)
    return f"{rounded:+d} %".replace("-", "\N{MINUS SIGN}") if rounded else "±0 %"
