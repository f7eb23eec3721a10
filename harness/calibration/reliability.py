"""Reliability diagrams: accuracy against confidence, with gaps and counts; one panel a model, or all in one. No torch.

The data are `Bins`. Colours are of the palette of Okabe and Ito (2008), which colour-blind readers tell apart, and
never carry a meaning alone: overlaid models differ in marker too, gaps are hatched. Drawn 8 inches wide, so that text
stays readable at the width of a README.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from harness.calibration.bins import Bins, expected_calibration_error
from harness.calibration.figure_file import COLOURS, MARKERS, save_figure

_WIDTH_INCHES = 8.0
_PANELS_PER_ROW = 3
_ACCURACY, _GAP = COLOURS[5], COLOURS[1]  # light, dark: the hatching of a gap shows on the bar too


@dataclass(frozen=True)
class Reliability:
    """One model in a diagram."""

    label: str
    bins: Bins


def reliability_panels(models: Sequence[Reliability]) -> Figure:
    """A panel a model, up to three in a row: bars of accuracy, hatched gaps to the mean confidence, counts below.

    Raises ValueError if there is no model.
    """
    _check(models, len(models))
    columns = min(_PANELS_PER_ROW, len(models))
    rows = math.ceil(len(models) / columns)
    panel_inches = _WIDTH_INCHES / columns
    figure = Figure((_WIDTH_INCHES, rows * min(1.45 * panel_inches, 5.0) + 0.4), layout="constrained")
    ratios = [3, 1] * rows
    axes = figure.subplots(2 * rows, columns, squeeze=False, sharex=True, gridspec_kw={"height_ratios": ratios})
    most = max(max(model.bins.counts) for model in models)
    for place in range(rows * columns):
        upper, lower = axes[place // columns * 2][place % columns], axes[place // columns * 2 + 1][place % columns]
        if place >= len(models):
            upper.set_axis_off()
            lower.set_axis_off()
            continue
        _bars(upper, models[place])
        _counts(lower, models[place].bins, most)
        if place % columns == 0:
            upper.set_ylabel("accuracy")
            lower.set_ylabel("tokens")
        lower.set_xlabel("confidence")
        lower.tick_params(labelbottom=True)
    figure.legend(
        handles=[
            Patch(facecolor=_ACCURACY, edgecolor="black", label="accuracy"),
            Patch(facecolor="none", edgecolor=_GAP, hatch="////", label="gap to mean confidence"),
        ],
        loc="outside lower center",
        ncols=2,
        frameon=False,
    )
    return figure


def reliability_overlay(models: Sequence[Reliability]) -> Figure:
    """All models in one diagram, a line and a marker each: (mean confidence, accuracy) of the bins, counts below.

    Raises ValueError if there is no model, or more than the seven that colours and markers tell apart.
    """
    _check(models, len(COLOURS))
    figure = Figure((_WIDTH_INCHES, 6.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1]})
    _diagonal(upper)
    for model, colour, marker in zip(models, COLOURS, MARKERS, strict=False):
        bins = model.bins
        points = [
            (x, y) for x, y in zip(bins.mean_confidence, bins.accuracy, strict=True) if x is not None and y is not None
        ]
        label = f"{model.label}: {_ece(bins)}"
        upper.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=6, label=label, clip_on=False)
        lower.stairs(bins.counts, bins.edges, color=colour, linewidth=1.5)
    upper.set_ylabel("accuracy")
    figure.legend(loc="outside upper center", ncols=2 if len(models) > 1 else 1, frameon=False)
    lower.set_yscale("log")
    lower.set_ylabel("tokens")
    lower.set_xlabel("confidence")
    return figure


def write_reliability(models: Sequence[Reliability], stem: Path, *, overlaid: bool = False) -> tuple[Path, Path]:
    """Draws and writes `stem`.svg and `stem`.png; returns their paths. The same bins give the same bytes of SVG."""
    return save_figure(reliability_overlay(models) if overlaid else reliability_panels(models), stem)


def _bars(axes: Axes, model: Reliability) -> None:
    bins = model.bins
    _diagonal(axes)
    for left, right, accuracy, confidence in zip(
        bins.edges, bins.edges[1:], bins.accuracy, bins.mean_confidence, strict=False
    ):
        if accuracy is None or confidence is None:
            continue
        width = right - left
        axes.bar(left, accuracy, width, align="edge", color=_ACCURACY, edgecolor="black", linewidth=0.6)
        low, high = sorted((accuracy, confidence))
        axes.bar(
            left, high - low, width, low, align="edge", facecolor="none", edgecolor=_GAP, hatch="////", linewidth=0.6
        )
    axes.set_title(f"{model.label}\n{_ece(bins)}", fontsize=10)


def _counts(axes: Axes, bins: Bins, most: int) -> None:
    widths = [right - left for left, right in zip(bins.edges, bins.edges[1:], strict=False)]
    axes.bar(bins.edges[:-1], bins.counts, widths, align="edge", color="0.6", edgecolor="black", linewidth=0.6)
    axes.set_yscale("log")  # most tokens are in the outermost bins
    axes.set_ylim(0.5, 2 * most)


def _diagonal(axes: Axes) -> None:
    axes.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1, zorder=3)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)


def _ece(bins: Bins) -> str:
    right = sum(bins.correct_sums) / bins.total
    return f"ECE {100 * expected_calibration_error(bins):.2f} %, accuracy {100 * right:.1f} %"


def _check(models: Sequence[Reliability], most: int) -> None:
    if not 1 <= len(models) <= most:
        raise ValueError(f"models must be 1 to {max(most, 1)}, not {len(models)}")
