"""Scale-free errors against the oracle, in float64 by blocks of rows: no second float64 copy of a gradient exists."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.case import Case
from harness.worker.oracle import Oracle
from harness.worker.products import slices

_BLOCK_BYTES = 1 << 27  # of float64 rows held at once; a few temporaries of this size


@dataclass(frozen=True)
class GradientError:
    """How far a gradient (R, D) is from the true one."""

    whole: float | None  # norm(g - g64) / norm(g64), Frobenius; None where g64 is zero
    row_p99: float | None  # 99th percentile over the rows of the same; rows whose true gradient is zero do not count
    stray: int  # elements that are not zero in rows whose true gradient is: an ignored token's row of grad_input


def gradient_error(gradient: Tensor, truth: Tensor, rows: Tensor | None = None) -> GradientError:
    """Compares gradient (R, D) of any dtype, or its rows `rows` (R,), with truth (R, D) in float64."""
    error_norms, true_norms, stray = [], [], 0
    for part in slices(truth.shape[0], 8 * truth.shape[1], _BLOCK_BYTES):
        true = truth[part]
        given = (gradient[part] if rows is None else gradient[rows[part]]).to(true.device, torch.float64)
        true_norm = torch.linalg.vector_norm(true, dim=1)
        stray += int(given[true_norm == 0].count_nonzero())
        error_norms.append(torch.linalg.vector_norm(given - true, dim=1))
        true_norms.append(true_norm)
    error, true_norm = torch.cat(error_norms), torch.cat(true_norms)
    some = true_norm > 0
    if not bool(some.any()):
        return GradientError(None, None, stray)
    ratios = error[some] / true_norm[some]
    p99 = ratios.kthvalue(math.ceil(0.99 * ratios.numel())).values
    whole = torch.linalg.vector_norm(error) / torch.linalg.vector_norm(true_norm)
    return GradientError(float(whole), float(p99), stray)


def displaced(truth: Tensor, dtype: torch.dtype) -> Tensor:
    """truth (R, D) in `dtype` with rows and columns shifted by one: a gradient of the right size, of other inputs."""
    shifted = torch.empty_like(truth, dtype=dtype)
    for part in slices(truth.shape[0], 8 * truth.shape[1], _BLOCK_BYTES):
        above = torch.arange(part.start - 1, part.stop - 1, device=truth.device) % truth.shape[0]
        shifted[part] = truth[above].roll(1, 1).to(dtype)
    return shifted


def loss_scale(case: Case, oracle: Oracle) -> float:
    """What an error of the loss is relative to: max(|L64|, mean |lse|), for the loss is a difference of such numbers.

    For reduction sum the mean is multiplied by the rows that count; for none |L64| is the largest token's. 0.0 where no
    row counts.
    """
    if not oracle.counted_rows:
        return 0.0
    rows = oracle.counted_rows if case.reduction == "sum" else 1
    return max(float(oracle.loss.abs().max()), rows * oracle.mean_abs_lse)
