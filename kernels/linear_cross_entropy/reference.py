"""The same mathematics in plain torch, a chunk of tokens at a time: CPU tensors, and what tests compare with.

Memory: one chunk of logits in fp32 (CHUNK_BYTES), fp32 copies of linear_weight and of dC. Arithmetic is
fp32, or fp64 for fp64 operands (which the api does not let through: an oracle for tests).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from kernels.linear_cross_entropy.problem import Gradients, Method, Needs, Problem, Statistics
from kernels.linear_cross_entropy.vocabulary_order import average_logits

CHUNK_BYTES = 64 * 2**20  # of fp32 logits
BLOCK_N, BLOCK_V = 128, 256  # the filter's tile, as on the GPUs with a copy engine


def statistics(problem: Problem) -> Statistics:
    """Loss, lse and nll of every token; zeros in ignored rows, nan losses where the target is no class."""
    wide = _wide(problem)
    new = problem.input.new_empty
    result = Statistics(*(new(problem.tokens, dtype=wide) for _ in range(5)))
    ignored = problem.target == problem.ignore_index
    weight, bias = _widened(problem)
    for rows in _chunks(problem):
        s, _ = _logits(problem, rows, weight, bias)
        maximum = s.amax(dim=1)
        total = (s - maximum[:, None]).exp_().sum(dim=1)
        lse = maximum + total.log()
        y = problem.target[rows]
        outside = (y < 0) | (y >= problem.vocab_size)
        nll = (maximum - s.gather(1, y.masked_fill(outside, 0)[:, None])[:, 0]) + total.log()
        beta = problem.label_smoothing
        loss = (1 - beta) * nll + beta * (lse - s.mean(dim=1)) if beta else nll
        for out, value in ((result.loss, loss), (result.nll, nll)):
            out[rows] = value.masked_fill(outside, float("nan")).masked_fill(ignored[rows], 0)
        result.lse[rows] = lse.masked_fill(ignored[rows], 0)
        result.maximum[rows], result.total[rows] = maximum, total
    return result


def gradients(
    problem: Problem,
    statistics: Statistics,
    grad_loss: Tensor,  # (N,), 0 in rows that do not count
    grad_lse: Tensor,  # (N,), 0 in rows that do not count
    needs: Needs,
    method: Method,
    *,
    blocks: tuple[int, int] = (BLOCK_N, BLOCK_V),
    order: Tensor | None = None,
) -> Gradients:
    """dE, dC and db of sum(grad_loss * loss + grad_lse * lse). `blocks`, `order`: the filter's, for tests."""
    wide = _wide(problem)
    E, C = problem.input, problem.weight
    V, beta = problem.vocab_size, problem.label_smoothing
    weight, bias = _widened(problem)
    grad_input = E.new_empty(E.shape, dtype=wide) if needs.input else None
    grad_weight = C.new_zeros(C.shape, dtype=wide) if needs.weight else None
    grad_bias = C.new_zeros(V, dtype=wide) if needs.bias else None
    if method.sort and order is None:
        order = torch.argsort(average_logits(C, E, problem.bias), descending=True, stable=True)
    filtering = method.filtered and method.eps > 0
    for rows in _chunks(problem, blocks[0]):
        s, slope = _logits(problem, rows, weight, bias)
        g, g_lse = grad_loss[rows].to(wide), grad_lse[rows].to(wide)
        top, mass = (t[rows].to(wide)[:, None] for t in (statistics.maximum, statistics.total))
        # Rows without a gradient may have no normalisation either: exp could be inf there, and inf * 0 nan.
        p = torch.where((g + g_lse == 0)[:, None], 0.0, (s - top).exp_() / mass)
        onehot = (torch.arange(V, device=s.device) == problem.target[rows][:, None]).to(wide)
        dz = p * (g + g_lse)[:, None] - g[:, None] * ((1 - beta) * onehot + beta / V)
        dz = dz * slope
        if grad_bias is not None:
            grad_bias += dz.sum(dim=0)  # one sum a class: nothing to save by filtering it
        if filtering:
            dz = _filtered(dz, method.eps * (g.abs() + g_lse.abs()), order, blocks)
        if grad_input is not None:
            grad_input[rows] = dz @ weight
        if grad_weight is not None:
            grad_weight += dz.t() @ E[rows].to(wide)
    narrow = [None if t is None else t.to(C.dtype) for t in (grad_input, grad_weight, grad_bias)]
    return Gradients(*narrow)


def _filtered(dz: Tensor, bound: Tensor, order: Tensor | None, blocks: tuple[int, int]) -> Tensor:
    """dz with every block in which no |dz_nv| exceeds its row's bound set to zero."""
    block_n, block_v = blocks
    n, v = dz.shape
    ordered = dz if order is None else dz[:, order]
    large = (ordered.abs() > bound[:, None]).to(torch.float32)
    pad = (0, -v % block_v, 0, -n % block_n)
    tiles = torch.nn.functional.pad(large, pad).unflatten(0, (-1, block_n)).unflatten(2, (-1, block_v))
    active = tiles.amax(dim=(1, 3)) > 0
    mask = active.repeat_interleave(block_n, 0)[:n].repeat_interleave(block_v, 1)[:, :v]
    if order is not None:
        mask = torch.empty_like(mask).index_copy_(1, order, mask)
    return dz * mask


def _logits(problem: Problem, rows: slice, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | float]:
    """(s, ds/dz) of a chunk: softcapped logits and the softcap's derivative."""
    z = problem.input[rows].to(weight.dtype) @ weight.t()
    if bias is not None:
        z += bias
    if not problem.softcap:
        return z, 1.0
    t = torch.tanh(z / problem.softcap)
    return t * problem.softcap, 1 - t * t


def _chunks(problem: Problem, multiple: int = 1) -> Iterator[slice]:
    tokens = max(1, CHUNK_BYTES // (4 * problem.vocab_size)) // multiple * multiple or multiple
    for start in range(0, problem.tokens, tokens):
        yield slice(start, min(start + tokens, problem.tokens))


def _wide(problem: Problem) -> torch.dtype:
    return torch.promote_types(problem.input.dtype, torch.float32)


def _widened(problem: Problem) -> tuple[Tensor, Tensor | None]:
    wide = _wide(problem)
    return problem.weight.to(wide), None if problem.bias is None else problem.bias.to(wide)
