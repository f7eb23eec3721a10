"""Pictures in which each row is a point: a panel per case under one another, names beside the points, one key above."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.analysis.formats import number, setting
from harness.analysis.pictures.labels import Label, place_beside
from harness.analysis.pictures.picture import (
    DISAGREES_COLOUR,
    FLOOR_COLOUR,
    MOST_PANELS,
    OK_COLOUR,
    SMALL,
    WIDTH_INCHES,
    Picture,
    agrees,
    first_of,
    plain_log_ticks,
    say_left_out,
)
from harness.record import Record

Place = Callable[[Record], tuple[float, float]]
NOTE: dict[str, Any] = {
    "fontsize": SMALL,
    "color": FLOOR_COLOUR,
    "style": "italic",
}  # what a floor or a limit is called
_HOLLOW: dict[str, Any] = {"markerfacecolor": "white", "markeredgewidth": 1.4}


def points(
    stem: str,
    cases: Mapping[str, Sequence[Record]],
    place: Place,
    draw: Callable[[Axes, Sequence[Record]], None],
    axis_names: tuple[str, str],
    key: Sequence[Line2D],
) -> Picture:
    """The rows of each case, both axes logarithmic. draw adds lines to a panel and sets its limits."""
    shown = list(cases.values())[:MOST_PANELS]
    figure = Figure(figsize=(WIDTH_INCHES, 3.3 * len(shown) + 0.5), layout="constrained")
    panels = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    for axes, case in zip(panels, shown, strict=True):
        axes.set_xscale("log")
        axes.set_yscale("log")
        for record in case:
            colour = OK_COLOUR if agrees(record) else DISAGREES_COLOUR
            inside = colour if agrees(record) else "white"
            axes.plot(
                *place(record), "o", color=colour, markerfacecolor=inside, markeredgewidth=1.4, markersize=6, zorder=4
            )
        draw(axes, case)
        axes.set_title(
            f"{setting(case[0].case)}, β = {number(case[0].case.label_smoothing)}", fontsize=SMALL + 1.5, loc="left"
        )
        axes.set_xlabel(axis_names[0], fontsize=SMALL + 1)
        axes.set_ylabel(axis_names[1], fontsize=SMALL + 1)
        axes.grid(alpha=0.25, which="major")
        plain_log_ticks(axes, "x")
        plain_log_ticks(axes, "y")
    figure.legend(handles=[*_key(), *key], loc="outside upper center", ncols=4, fontsize=SMALL, frameon=False)
    say_left_out(figure, first_of(len(shown), len(cases), "cases"))
    figure.draw_without_rendering()  # lays out: names are placed by where points are on the page
    figure.set_layout_engine("none")
    for axes, case in zip(panels, shown, strict=True):
        place_beside(axes, [_label(record, place) for record in case], SMALL)
    return Picture(stem, figure)


def _label(record: Record, place: Place) -> Label:
    return Label(record.implementation, *place(record), "#222222" if agrees(record) else DISAGREES_COLOUR)


def _key() -> list[Line2D]:
    return [
        Line2D([], [], color=OK_COLOUR, marker="o", linestyle="", label="gradients agree"),
        Line2D([], [], color=DISAGREES_COLOUR, marker="o", linestyle="", label="not ok, never ranked", **_HOLLOW),
    ]
