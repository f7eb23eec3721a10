"""What is kept of a call to compare another with it: its gradients' projections on a few random directions, their bits.

A gradient (R, D) is multiplied by a fixed (D, K) matrix of signs / sqrt(K): the norm of what results estimates the
gradient's own, and the norm of a difference the difference's, within a fifth at worst and mostly far better (the
relative variance of the square is 2 / K over the effective rank of the difference; Johnson and Lindenstrauss 1984). So
calls can be compared where two of their gradients do not fit beside each other: 32 MiB stand for 1.1 GiB.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.case import Case
from harness.worker.inputs import bit_digest
from harness.worker.products import slices

_DIRECTIONS = 16
_SEED = 1984
_BLOCK_BYTES = 1 << 27
_MOST_ALIVE = 7  # in the agreement phase: the first call, two upstreams, permuted, two of the shift, the judged one
NAMES = ("grad_input", "grad_weight", "grad_bias")


@dataclass(frozen=True)
class Sketch:
    """One call: loss and gradients by name. Float64; a gradient (R, D) is (R, K), the bias's (V,) is (V, 1)."""

    loss: Tensor
    gradients: Mapping[str, Tensor]
    bits: Mapping[str, str]  # digests of loss and gradients

    def finite(self) -> bool:
        """Whether all gradients are: nan and inf survive the projection."""
        return all(bool(tensor.isfinite().all()) for tensor in self.gradients.values())


def sketches_bytes(case: Case) -> int:
    """What all sketches of an agreement phase hold at the same time."""
    return _MOST_ALIVE * 8 * _DIRECTIONS * (case.tokens + case.vocab_size)


@torch.no_grad()
def sketch(loss: Tensor, gradients: Sequence[Tensor | None], without_column: int | None = None) -> Sketch:
    """Of the loss and (input, linear_weight, linear_bias).grad; a missing one is left out.

    `without_column` is a column of grad_input that does not count.
    """
    present = {name: g for name, g in zip(NAMES, gradients, strict=False) if g is not None}
    projected = {
        name: gradient.double()[:, None] if gradient.dim() == 1 else project(gradient)
        for name, gradient in present.items()
    }
    if without_column is not None and "grad_input" in present:
        projected["grad_input"] = project(present["grad_input"], without_column)
    bits = {name: bit_digest(tensor.contiguous()) for name, tensor in {"loss": loss.detach(), **present}.items()}
    return Sketch(loss.detach().double(), projected, bits)


def project(gradient: Tensor, without_column: int | None = None) -> Tensor:
    """gradient (R, D) on the same K directions on every call: (R, K) in float64."""
    generator = torch.Generator().manual_seed(_SEED)
    signs = torch.randint(0, 2, (gradient.shape[1], _DIRECTIONS), generator=generator).double() * 2 - 1
    if without_column is not None:
        signs[without_column] = 0
    directions = (signs / _DIRECTIONS**0.5).to(gradient.device)
    result = torch.empty(gradient.shape[0], _DIRECTIONS, dtype=torch.float64, device=gradient.device)
    for part in slices(gradient.shape[0], 8 * gradient.shape[1], _BLOCK_BYTES):
        result[part] = gradient[part].double() @ directions
    return result


def deviation(given: Tensor, expected: Tensor) -> float:
    """norm(given - expected) / norm(expected); 0 where both are zero, inf where only the expected is, or one is nan."""
    difference, size = (float(torch.linalg.vector_norm(t)) for t in (given - expected, expected))
    if difference == 0:
        return 0.0
    ratio = difference / size if size else math.inf
    return math.inf if math.isnan(ratio) else ratio
