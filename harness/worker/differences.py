"""How far calls are from each other: what is left of their sketches once the oracle needs the memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from harness.worker.other_calls import Probes
from harness.worker.sketch import Sketch, deviation

Moved = list[tuple[str, float]]  # (tensor, deviation); of the loss the largest element's, in the loss's own unit


@dataclass(frozen=True)
class Differences:
    """By check, see `harness.checks.Checks`; numbers alone."""

    linearity: Moved
    permutation: Moved
    shift: Moved  # empty where the identity does not hold
    repeat: Moved
    repeats_bitwise: bool
    differing: list[str]  # what has other bits in another call: loss and gradients by name


def differences(seen: Sketch, probes: Probes) -> Differences:
    """Between the judged call, `seen`, and the others, and among those."""
    first = probes.first
    permuted = {name: rows if name == "grad_input" else rows[probes.order] for name, rows in first.gradients.items()}
    linearity = [item for factor, other in probes.upstream for item in _gradients(other, first.gradients, factor)]
    shift: Moved = []
    if probes.shifted is not None and probes.unshifted is not None:
        shift = _gradients(probes.shifted, probes.unshifted.gradients) + _loss(probes.shifted, probes.unshifted)
    return Differences(
        linearity=linearity,
        permutation=_gradients(probes.permuted, permuted) + _loss(probes.permuted, first),
        shift=shift,
        repeat=_gradients(seen, first.gradients) + _loss(seen, first),
        repeats_bitwise=seen.bits == first.bits,
        differing=[name for name, bits in seen.bits.items() if first.bits[name] != bits],
    )


def _gradients(given: Sketch, expected: Mapping[str, Tensor], factor: float = 1.0) -> Moved:
    return [
        (name, deviation(given.gradients[name], factor * rows))
        for name, rows in expected.items()
        if name in given.gradients
    ]


def _loss(given: Sketch, expected: Sketch) -> Moved:
    if not bool(expected.loss.isfinite().all()):  # the oracle judges that
        return []
    moved = float((given.loss - expected.loss).abs().max())
    return [("loss", math.inf if math.isnan(moved) else moved)]
