"""The parity table: how far every curve is from torch's, beside how far two torch arithmetics are from each other.

Two trainings whose steps are rounded differently drift apart, however right both are: a difference of one ulp grows
from step to step. So a distance says nothing alone; it is put beside the yardstick, the distance between eager torch
and compiled torch at the same label smoothing. No torch is needed to read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from tabulate import tabulate

from harness.training.curves import BASELINE, YARDSTICK, TrainedCurve, distance, find

_MIB = 1 << 20
_NONE = "—"


@dataclass(frozen=True)
class Gap:
    """The largest distance of two curves, the step at which they are as far apart, and their root mean square."""

    value: float
    step: int
    rms: float


@dataclass(frozen=True)
class ParityRow:
    """One curve beside the baseline of its label smoothing. None: nothing to compare with, or not measured."""

    loss: str
    label_smoothing: float
    steps: int
    last_loss: float
    held_out_loss: float | None  # of the last evaluation
    loss_gap: Gap | None
    loss_yardstick: Gap | None
    grad_norm_gap: Gap | None
    grad_norm_yardstick: Gap | None
    step_ms: float | None  # medians over the warm steps; of a run apart only, if there is one
    tokens_per_s: float | None
    peak_bytes: int | None  # the largest of the warm steps


def gap_to(curve: TrainedCurve | None, reference: TrainedCurve | None, name: str) -> Gap | None:
    """The distance in `name` over the steps of both; None if a curve is missing, or they have no step in common."""
    if curve is None or reference is None:
        return None
    steps, gaps = distance(curve, reference, name)
    if not steps:
        return None
    place = int(gaps.argmax())
    return Gap(float(gaps[place]), steps[place], float((gaps**2).mean() ** 0.5))


def parity_rows(curves: Sequence[TrainedCurve]) -> list[ParityRow]:
    """A row for every curve that has steps, in the order of `curves`."""
    rows = []
    timed_apart = any(curve.quiet for curve in curves)
    for curve in curves:
        if not curve.steps:
            continue
        baseline = find(curves, BASELINE, curve.label_smoothing)
        yardstick = find(curves, YARDSTICK, curve.label_smoothing)
        compared = curve if curve is not baseline else None
        # a step's memory does not mind who shares the machine, its time does
        warm = [step for step in (curve.quiet if timed_apart else curve.steps) if step.warm]
        peaks = [step.peak_bytes for step in warm or curve.steps if step.warm and step.peak_bytes is not None]
        rows.append(
            ParityRow(
                loss=curve.loss,
                label_smoothing=curve.label_smoothing,
                steps=curve.steps[-1].step,
                last_loss=curve.steps[-1].loss,
                held_out_loss=curve.evaluations[-1].held_out_loss if curve.evaluations else None,
                loss_gap=gap_to(compared, baseline, "loss"),
                loss_yardstick=gap_to(yardstick, baseline, "loss"),
                grad_norm_gap=gap_to(compared, baseline, "grad_norm"),
                grad_norm_yardstick=gap_to(yardstick, baseline, "grad_norm"),
                step_ms=median(step.step_ms for step in warm) if warm else None,
                tokens_per_s=median(step.tokens_per_s for step in warm) if warm else None,
                peak_bytes=max(peaks) if peaks else None,
            )
        )
    return rows


def parity_table(rows: Sequence[ParityRow]) -> str:
    """The rows in markdown."""
    headers = [
        "loss", "β", "steps", "last loss", "held-out", "loss gap", "yardstick", "grad norm gap", "yardstick",
        "step ms", "tokens/s", "peak MiB",
    ]  # fmt: skip
    cells = [
        [
            row.loss,
            f"{row.label_smoothing:g}",
            row.steps,
            f"{row.last_loss:.4f}",
            _number(row.held_out_loss, ".4f"),
            _gap(row.loss_gap),
            _gap(row.loss_yardstick),
            _gap(row.grad_norm_gap),
            _gap(row.grad_norm_yardstick),
            _number(row.step_ms, ".2f"),
            _number(row.tokens_per_s, ".0f"),
            _number(None if row.peak_bytes is None else row.peak_bytes / _MIB, ".0f"),
        ]
        for row in rows
    ]
    aligned = ("left", *["right"] * (len(headers) - 1))
    return tabulate(cells, headers=headers, tablefmt="pipe", colalign=aligned, disable_numparse=True) if cells else ""


def _number(value: float | None, form: str) -> str:
    return _NONE if value is None else format(value, form)


def _gap(gap: Gap | None) -> str:
    return _NONE if gap is None else f"{gap.value:.1e} @{gap.step}, {gap.rms:.1e}"
