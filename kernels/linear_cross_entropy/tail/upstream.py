"""Upstream gradients of the rows that count, and sums over the batch that routing compares with."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.linear_cross_entropy.problem import Problem, Statistics

BLOCK = 4096  # tokens a step

# Places in `totals`, one vector of fp32 numbers about the whole batch
LARGEST, ONE_HOT, P_SCALE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
BOUND, INPUT_ERROR, WEIGHT_ERROR = tl.constexpr(3), tl.constexpr(4), tl.constexpr(5)
TOTALS = 6


@triton.jit(do_not_specialize=["N", "V", "ignore_index"])
def upstream_kernel(
    target,  # (N,) int64
    nll,  # (N,) fp32
    grad_loss,  # (N,) fp32
    grad_lse,  # (N,) fp32
    g,  # (N,) fp32, out: grad_loss of the rows that count, 0 of the others
    p_scale,  # (N,) fp32, out: likewise, grad_loss + grad_lse
    totals,  # (TOTALS,) fp32, out: LARGEST, ONE_HOT and P_SCALE
    N,
    V,
    ignore_index,
    keep,  # 1 - beta
    BLOCK: tl.constexpr,
):
    # One program: a sum over N is quicker than two launches.
    largest = tl.zeros((BLOCK,), tl.float32)
    one_hot = tl.zeros((BLOCK,), tl.float32)
    both = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, N, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        mask = rows < N
        y = tl.load(target + rows, mask=mask, other=ignore_index)
        counts = (y >= 0) & (y < V) & (y != ignore_index)
        # where, not *: the mean over no rows at all has an infinite upstream gradient.
        loss = tl.where(counts, tl.load(grad_loss + rows, mask=mask, other=0.0), 0.0)
        scale = loss + tl.where(counts, tl.load(grad_lse + rows, mask=mask, other=0.0), 0.0)
        tl.store(g + rows, loss, mask=mask)
        tl.store(p_scale + rows, scale, mask=mask)
        wrong = loss * (keep - tl.exp(-tl.load(nll + rows, mask=mask, other=0.0)))
        one_hot += tl.where(loss == 0.0, 0.0, wrong * wrong)
        largest = tl.maximum(largest, tl.maximum(tl.abs(loss), tl.abs(scale)))
        both += tl.abs(scale)
    tl.store(totals + LARGEST, tl.maximum(tl.max(largest, axis=0), 1e-30))
    tl.store(totals + ONE_HOT, tl.maximum(tl.sum(one_hot, axis=0), 1e-37))
    tl.store(totals + P_SCALE, tl.maximum(tl.sum(both, axis=0), 1e-30))


@dataclass(frozen=True)
class Upstream:
    """Upstream gradients of the rows that count; 0 in the others."""

    loss: Tensor  # (N,) fp32: g
    p_scale: Tensor  # (N,) fp32: g + l
    totals: Tensor  # (TOTALS,) fp32


def upstream(problem: Problem, statistics: Statistics, grad_loss: Tensor, grad_lse: Tensor) -> Upstream:
    """What the gradients are scaled with, from grad_loss and grad_lse (N,) fp32."""
    N, device = problem.tokens, problem.input.device
    g, p_scale, totals = (torch.empty(n, dtype=torch.float32, device=device) for n in (N, N, TOTALS))
    upstream_kernel[(1,)](
        problem.target, statistics.nll, grad_loss, grad_lse, g, p_scale, totals,
        N, problem.vocab_size, problem.ignore_index, 1.0 - problem.label_smoothing,
        BLOCK=BLOCK, num_warps=16,
    )  # fmt: skip
    return Upstream(g, p_scale, totals)
