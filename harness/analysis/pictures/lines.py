"""Lines of implementations over a quantity of the case, with a hollow marker where a row is not ok."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from harness.analysis.pictures.picture import Style


class Point(NamedTuple):
    """One row of a line."""

    x: float
    y: float
    agrees: bool


def draw_line(axes: Axes, points: Sequence[Point], style: Style) -> None:
    """The line through the points; filled markers where the row agrees."""
    ordered = sorted(points)
    axes.plot([p.x for p in ordered], [p.y for p in ordered], **_line(style), zorder=2)
    for hollow in (False, True):
        chosen = [p for p in ordered if p.agrees is not hollow]
        axes.plot([p.x for p in chosen], [p.y for p in chosen], **_marker(style, hollow), linestyle="", zorder=3)


def key(name: str, style: Style, hollow: bool = False) -> Line2D:
    """The line as a legend shows it."""
    return Line2D([], [], label=name, **(_line(style) | _marker(style, hollow)))


def slope(points: Sequence[Point]) -> float | None:
    """The exponent p of y = c x^p, fitted to the logarithms; None with fewer than three different x."""
    if len({p.x for p in points}) < 3 or any(p.y <= 0 or p.x <= 0 for p in points):
        return None
    x, y = np.log([p.x for p in points]), np.log([p.y for p in points])
    x = x - x.mean()
    return float((x * (y - y.mean())).sum() / (x * x).sum())


def _line(style: Style) -> dict[str, Any]:
    return {"color": style.colour, "linestyle": style.line, "linewidth": 1.3}


def _marker(style: Style, hollow: bool) -> dict[str, Any]:
    inside = "white" if hollow else style.colour
    return {"color": style.colour, "marker": style.marker, "markersize": 4.5, "markerfacecolor": inside}
