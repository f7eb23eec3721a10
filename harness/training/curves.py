"""Curves that were trained, read back and drawn: loss, gradient norm, and the distance to the baseline. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from harness.training.config import TrainingConfig
from harness.training.curve_log import Evaluation, Outcome, Step
from harness.training.training_run import TrainingRun

BASELINE, YARDSTICK = "baseline", "torch-compile"  # two arithmetics of torch: how far right answers drift apart

# Okabe and Ito's colours, told apart by colour-blind readers too; yellow left out, too faint on white for a line
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_LINES = ("-", (0, (5, 2)), (0, (1, 1.2)))  # the second seven are dashed, the third dotted
_FAINT = 0.06  # the opacity of raw values: ten curves of them are still no wall
_DRAWN_POINTS = 400  # of a smoothed line
_SMOOTHED_SHARE = 50  # the line is a mean over 1/50 of the steps


@dataclass(frozen=True)
class TrainedCurve:
    """What is known of one curve."""

    loss: str  # the implementation's name
    label_smoothing: float
    steps: tuple[Step, ...]
    evaluations: tuple[Evaluation, ...] = ()
    outcome: Outcome | None = None  # None: it has not ended
    quiet: tuple[Step, ...] = ()  # steps of another training of it, for time and memory

    def values(self, name: str) -> NDArray[np.float64]:
        """A number of every step."""
        return np.array([getattr(step, name) for step in self.steps], dtype=np.float64)


def read_curves(run: TrainingRun, config: TrainingConfig) -> list[TrainedCurve]:
    """Every curve of the run, in the order of its plan, also those that are skipped or not begun."""
    logs = [(curve, run.log(curve)) for curve in config.curves()]
    return [
        TrainedCurve(
            curve.loss.name,
            curve.label_smoothing,
            tuple(log.steps()),
            tuple(log.evaluations()),
            log.outcome(),
            tuple(log.quiet().steps()),
        )
        for curve, log in logs
    ]


def find(curves: Sequence[TrainedCurve], loss: str, label_smoothing: float) -> TrainedCurve | None:
    """The curve of a loss at a label smoothing, if it has steps."""
    found = (c for c in curves if (c.loss, c.label_smoothing) == (loss, label_smoothing) and c.steps)
    return next(found, None)


def distance(curve: TrainedCurve, reference: TrainedCurve, name: str) -> tuple[list[int], NDArray[np.float64]]:
    """The steps that both have, and at each how far apart their `name` is."""
    ours = {step.step: getattr(step, name) for step in curve.steps}
    theirs = {step.step: getattr(step, name) for step in reference.steps}
    common = sorted(ours.keys() & theirs.keys())
    return common, np.array([abs(ours[k] - theirs[k]) for k in common], dtype=np.float64)


def smoothed(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """The mean of each value and the `width` - 1 before it, of fewer at the beginning."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(0, ends - width)
    means: NDArray[np.float64] = (sums[ends] - sums[begins]) / (ends - begins)
    return means


def draw(curves: Sequence[TrainedCurve], directory: Path) -> list[Path]:
    """Writes curves.svg and curves.png: a row per label smoothing. Nothing if no curve has a step."""
    drawn = [curve for curve in curves if curve.steps]
    betas = list(dict.fromkeys(curve.label_smoothing for curve in drawn))
    if not betas:
        return []
    names = list(dict.fromkeys(curve.loss for curve in drawn))
    columns = 3 if any(find(drawn, BASELINE, beta) for beta in betas) and len(names) > 1 else 2
    figure = Figure(figsize=(1 + 4 * columns, 3.6 * len(betas) + 0.8), layout="constrained")
    rows = figure.subplots(len(betas), columns, squeeze=False)
    for axes, beta in zip(rows, betas, strict=True):
        reference = find(drawn, BASELINE, beta)
        for curve in [c for c in drawn if c.label_smoothing == beta]:
            place = names.index(curve.loss)
            style = {
                "color": _COLOURS[place % len(_COLOURS)],
                "linestyle": _LINES[place // len(_COLOURS) % len(_LINES)],
                "linewidth": 3.5 if curve is reference else 1.4,  # seen under the curves that cover it
            }
            numbers = [step.step for step in curve.steps]
            for axis, name in zip(axes[:2], ("loss", "grad_norm"), strict=True):
                _line(axis, numbers, curve.values(name), style, curve.loss)
            if columns == 3 and reference is not None and curve is not reference:
                common, gaps = distance(curve, reference, "loss")
                _line(axes[2], common, gaps, style, curve.loss)
        titles = ("loss, nats per token", "gradient norm", f"distance of the loss to {BASELINE}")
        for axis, title in zip(axes, titles, strict=False):
            axis.set(title=f"{title}, β = {beta:g}", xlabel="step")
            axis.grid(alpha=0.3)
        axes[1].set_yscale("log")
        if columns == 3:
            # equal arithmetic has a distance of exactly 0, and what is below 1e-5 is fp32's rounding
            axes[2].set_yscale("symlog", linthresh=1e-5, linscale=0.3)
    handles = {line.get_label(): line for axis in rows.flat for line in axis.get_lines()}
    shown = [name for name in names if name in handles]
    figure.legend([handles[n] for n in shown], shown, loc="outside lower center", ncols=min(7, len(shown)))
    return _saved(figure, directory)


def _line(
    axis: Axes, steps: Sequence[int], values: NDArray[np.float64], style: Mapping[str, object], label: str
) -> None:
    # every raw point as vectors would be megabytes of SVG; the smooth line needs few of its points
    axis.plot(steps, values, color=style["color"], alpha=_FAINT, linewidth=0.7, rasterized=True)
    width = max(1, len(values) // _SMOOTHED_SHARE)
    every = max(1, len(values) // _DRAWN_POINTS)
    axis.plot(steps[::-every][::-1], smoothed(values, width)[::-every][::-1], **style, label=label)  # type: ignore[arg-type]


def _saved(figure: Figure, directory: Path) -> list[Path]:
    paths = [directory / "curves.svg", directory / "curves.png"]
    with mpl.rc_context({"svg.hashsalt": "curves", "svg.fonttype": "none"}):  # equal data is an equal file
        figure.savefig(paths[0], metadata={"Date": None})
        figure.savefig(paths[1], dpi=130)
    return paths
