"""From a Problem to numbers: drops ignored rows, then runs the kernels (CUDA) or plain torch (CPU).

Packing. Ignored rows would cost as much as any other, so when enough of them are ignored the others are copied into a
dense batch first. How many there are must be known on the host: one synchronisation a step, in the forward, the only
one in this package; the backward is told. It costs the time in which the host cannot run ahead, an estimated 0.1 ms of
50 on the Gemma-2 head, where each per cent of ignored rows saves 0.5. `pack=False` and a CUDA graph that is being
captured go without: then ignored rows are masked at full cost, but for the forward's blocks that hold no others.
"""

import torch
from torch import Tensor

from kernels.linear_cross_entropy import reference
from kernels.linear_cross_entropy.config import PACK_FRACTION, capturing
from kernels.linear_cross_entropy.problem import Gradients, Method, Needs, Problem, Statistics


def count_kept(problem: Problem, pack: bool) -> int | None:
    """How many rows are not ignored, or None where packing them would not pay."""
    if problem.tokens == 0:
        return 0
    if not pack or capturing(problem.input.device):
        return None
    kept = int((problem.target != problem.ignore_index).sum())  # the host waits here
    return kept if packing_pays(kept, problem.tokens) else None


def packing_pays(kept: int, tokens: int) -> bool:
    """Whether so many rows are ignored that copying the others is cheaper than computing all."""
    return kept <= (1 - PACK_FRACTION) * tokens


def statistics(problem: Problem, kept: int | None) -> Statistics:
    """Loss, lse and nll of every token. `kept`: what count_kept said."""
    if kept is None:
        return _statistics(problem)
    if not kept:
        return Statistics.zeros(problem.tokens, problem.input.device)
    index = kept_rows(problem, kept)
    return _statistics(problem.rows(index)).placed(index, problem.tokens)


def gradients(
    problem: Problem,
    statistics: Statistics,
    grad_loss: Tensor,  # (N,)
    grad_lse: Tensor,  # (N,)
    needs: Needs,
    method: Method,
    kept: int | None,
) -> Gradients:
    """dE, dC and db of sum(grad_loss * loss + grad_lse * lse) over the rows that count. `kept`: as in the forward."""
    # where, not *: the mean over no rows at all has an infinite upstream gradient.
    counted = problem.counted
    grad_loss, grad_lse = torch.where(counted, grad_loss, 0.0), torch.where(counted, grad_lse, 0.0)
    if kept is None:
        return _gradients(problem, statistics, grad_loss, grad_lse, needs, method)
    if not kept:
        grad_input = problem.input.new_zeros(problem.input.shape) if needs.input else None
        grad_weight = problem.weight.new_zeros(problem.weight.shape) if needs.weight else None
        grad_bias = problem.weight.new_zeros(problem.vocab_size) if needs.bias else None
        return Gradients(grad_input, grad_weight, grad_bias)
    index = kept_rows(problem, kept)
    packed = problem.rows(index)
    part = _gradients(packed, statistics.rows(index), grad_loss[index], grad_lse[index], needs, method)
    return part.placed(index, problem.tokens)


def kept_rows(problem: Problem, kept: int) -> Tensor:  # (kept,) int64, ascending
    """Indices of the rows that are not ignored; a sort, since torch.nonzero would ask the host to wait again."""
    ignored = (problem.target == problem.ignore_index).to(torch.uint8)
    return torch.argsort(ignored, stable=True)[:kept]


def _statistics(problem: Problem) -> Statistics:
    if not problem.input.is_cuda:
        return reference.statistics(problem)
    # Here, not above: it imports triton, which an install without CUDA may lack.
    from kernels.linear_cross_entropy import forward  # noqa: PLC0415

    with torch.cuda.device(problem.input.device):  # Triton launches on the current device
        return forward.statistics(problem)


def _gradients(
    problem: Problem, statistics: Statistics, grad_loss: Tensor, grad_lse: Tensor, needs: Needs, method: Method
) -> Gradients:
    if not problem.input.is_cuda:
        return reference.gradients(problem, statistics, grad_loss, grad_lse, needs, method)
    from kernels.linear_cross_entropy import dense, filtered  # noqa: PLC0415

    with torch.cuda.device(problem.input.device):
        if method.filtered:
            return filtered.gradients(problem, statistics, grad_loss, grad_lse, needs, method)
        return dense.gradients(problem, statistics, grad_loss, grad_lse, needs)
