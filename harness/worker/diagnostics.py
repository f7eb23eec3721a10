"""How gradients are off: slope on the truth, error by magnitude, rows that were never a target, an optimizer's step.

Taken in float64 by blocks of rows, like the errors: nothing of the size of a gradient exists twice. What the numbers
mean is said in `harness.checks.Diagnostics`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.checks import Diagnostics
from harness.worker.inputs import IGNORE_INDEX
from harness.worker.oracle import Oracle
from harness.worker.products import slices

_BLOCK_BYTES = 1 << 27
_SAMPLE = 1 << 22  # elements that are sorted by magnitude: 400 000 in each tenth
_UNDERFLOW = 2.0**20  # below this multiple of tiny a row may vanish in dz, whose products with input are larger than it
_NEGLIGIBLE = 2.0**-10  # of the median row of dE: what a nearly certain token is left with is a difference of roundings
_ADAMW_EPS = 1e-8  # torch.optim.AdamW's default; with it the first step is g / (|g| + eps), whatever the betas


@torch.no_grad()
def diagnostics(grad_input: Tensor, grad_weight: Tensor, oracle: Oracle, target: Tensor) -> Diagnostics:
    """Of grad_input (N, D) and grad_weight, (V, D) or the rows that the oracle covers (R, D)."""
    rows = None
    if oracle.weight_rows is not None and grad_weight.shape != oracle.grad_weight.shape:
        rows = oracle.weight_rows
    of_input = _look(grad_input, oracle.grad_input, None, _NEGLIGIBLE)
    of_weight = _look(grad_weight, oracle.grad_weight, rows)
    cold = never_a_target(target, oracle)
    ratios = (of_weight.row_error / of_weight.row_norm)[cold & (of_weight.row_norm > 0)]
    return Diagnostics(
        grad_input_slope=of_input.slope,
        grad_weight_slope=of_weight.slope,
        grad_input_decile_errors=decile_errors(grad_input, oracle.grad_input, None),
        grad_weight_decile_errors=decile_errors(grad_weight, oracle.grad_weight, rows),
        grad_input_missing_rows=of_input.missing_rows,
        grad_weight_missing_rows=of_weight.missing_rows,
        cold_rows=ratios.numel(),
        cold_row_error_median=_quantile(ratios, 0.5),
        cold_row_error_p99=_quantile(ratios, 0.99),
        adamw_step_error=of_weight.step_error,
    )


def never_a_target(target: Tensor, oracle: Oracle) -> Tensor:
    """(R,) bool: which of the rows of linear_weight that the oracle covers are no token's target."""
    covered = oracle.grad_weight.shape[0]
    rows = torch.arange(covered, device=target.device) if oracle.weight_rows is None else oracle.weight_rows
    cold = torch.ones(int(rows.max()) + 1, dtype=torch.bool, device=target.device)
    counted = target[target != IGNORE_INDEX]
    cold[counted[counted < cold.numel()]] = False
    return cold[rows]


@dataclass(frozen=True)
class _Seen:
    slope: float | None
    step_error: float | None
    row_error: Tensor  # (R,)
    row_norm: Tensor  # (R,)
    missing_rows: int


def _look(gradient: Tensor, truth: Tensor, rows: Tensor | None, negligible: float = 0.0) -> _Seen:
    """`negligible`: rows whose largest element is below this share of the median row's cannot be missing."""
    sums = torch.zeros(4, dtype=torch.float64, device=truth.device)
    all_zero = torch.empty(truth.shape[0], dtype=torch.bool, device=truth.device)
    row_error, row_norm, largest = torch.empty((3, truth.shape[0]), dtype=torch.float64, device=truth.device)
    for part in slices(truth.shape[0], 8 * truth.shape[1], _BLOCK_BYTES):
        true = truth[part]
        given = (gradient[part] if rows is None else gradient[rows[part]]).to(true.device, torch.float64)
        row_error[part] = torch.linalg.vector_norm(given - true, dim=1)
        row_norm[part] = torch.linalg.vector_norm(true, dim=1)
        largest[part] = true.abs().amax(1)
        all_zero[part] = given.count_nonzero(1) == 0
        sums[0] += (given * true).sum()
        sums[1] += true.square().sum()
        right_step = true / (true.abs() + _ADAMW_EPS)
        sums[2] += (given / (given.abs() + _ADAMW_EPS) - right_step).square().sum()
        sums[3] += right_step.square().sum()
    along, square, step_error, step = sums.tolist()
    if not square:
        return _Seen(None, None, row_error, row_norm, 0)
    least = max(_least_of_a_row(gradient.dtype), negligible * float(largest[largest > 0].median()))
    missing = int((all_zero & (largest >= least)).sum())
    return _Seen(along / square, math.sqrt(step_error / step), row_error, row_norm, missing)


def _least_of_a_row(dtype: torch.dtype) -> float:
    """What the largest element of a row must have for all of it to be represented, whoever computes it.

    A row of dC is a sum of dz * input over thousands of tokens: every dz may underflow where the sum does not. fp16
    underflows gradually, ten bits below tiny, and has no 20 bits to spare above it.
    """
    tiny = torch.finfo(dtype).tiny
    return tiny if dtype is torch.float16 else _UNDERFLOW * tiny


def decile_errors(gradient: Tensor, truth: Tensor, rows: Tensor | None) -> list[float]:
    """Errors of ten equal groups of elements, ordered by the size of the true one; [] for fewer than ten.

    Of a large gradient every k-th element is taken, k prime to the row length, so that all columns are met. Elements
    whose true value is 0 do not count.
    """
    stride = max(1, truth.numel() // _SAMPLE)
    while math.gcd(stride, truth.shape[1]) > 1:
        stride += 1
    places = torch.arange(0, truth.numel(), stride, device=truth.device)
    row, column = places // truth.shape[1], places % truth.shape[1]
    true = truth[row, column]
    given = gradient[row if rows is None else rows[row], column].to(true.device, torch.float64)
    counts = true != 0
    true, given = true[counts], given[counts]
    if true.numel() < 10:
        return []
    order = true.abs().argsort(stable=True)
    groups = [order[true.numel() * k // 10 : true.numel() * (k + 1) // 10] for k in range(10)]
    return [float(torch.linalg.vector_norm((given - true)[g]) / torch.linalg.vector_norm(true[g])) for g in groups]


def _quantile(values: Tensor, share: float) -> float | None:
    if not values.numel():
        return None
    return float(values.kthvalue(max(1, math.ceil(share * values.numel()))).values)
