"""The paper's gradients: tiles of dz in which no |dz| / upstream exceeds 2**-12 are skipped.

For each slice of the vocabulary, its classes optionally in order of their average logit:
    dz, active = logit gradient of the slice           a flag for each (128 tokens, 256 classes)
    dE        += dz @ C over active tiles              fp32
    dC         = dz.T @ E over active token blocks     written once, fp32 accumulation
Not materialised: the logits, an fp32 copy of dC. Scratch: fp32 dE, one slice of dz and, sorted, the slice's rows of C;
slices.py says where they live.

What the filter loses is real: the tail of p is small in each element, large in sum, and shares a direction.
Smoothing, -g_n * beta / V for every v, is lost with the tile, as in the paper. It is of rank one and could be added
whole at no cost, but must not be: it pushes every class up, what holds the tail down is p, and with p dropped a model
trains until its tail has half of the mass (docs/training.md). With eps = 0 nothing is filtered, and this is exact.
"""

from dataclasses import replace

import torch
from torch import Tensor

from kernels.linear_cross_entropy.block_sparse import (
    ActiveLists,
    add_input_gradient,
    write_weight_gradient,
)
from kernels.linear_cross_entropy.column_sum import column_sum
from kernels.linear_cross_entropy.config import (
    ProductTile,
    Tile,
    choose_product_tile,
    choose_tile,
    multiprocessors,
)
from kernels.linear_cross_entropy.logit_gradient import write_logit_gradient
from kernels.linear_cross_entropy.problem import Gradients, Method, Needs, Problem, Statistics
from kernels.linear_cross_entropy.slices import Scratch, Slice, plan_slices
from kernels.linear_cross_entropy.vocabulary_order import average_logits


def gradients(
    problem: Problem,
    statistics: Statistics,
    grad_loss: Tensor,  # (N,) fp32, 0 in rows that do not count
    grad_lse: Tensor,  # (N,) fp32, 0 in rows that do not count
    needs: Needs,
    method: Method,
    *,
    tile: Tile | None = None,
    product: ProductTile | None = None,
    width: int | None = None,
) -> Gradients:
    """dE, dC and db of sum(grad_loss * loss + grad_lse * lse), less what the filter drops."""
    tile = tile or choose_tile(problem)
    product = product or choose_product_tile(problem)
    E, C = problem.input, problem.weight
    N, V, D = problem.tokens, problem.vocab_size, problem.hidden_size
    slices = plan(problem, needs, method, width)
    order = class_order(problem, slices) if method.sort else None
    if order is not None:
        problem = _reordered(problem, order)
    grad_weight = torch.empty((V, D), dtype=C.dtype, device=C.device) if needs.weight else None
    grad_bias = torch.empty(V, dtype=C.dtype, device=C.device) if needs.bias else None
    accumulator = torch.empty((N, D), dtype=torch.float32, device=E.device) if needs.input else None
    scratch = Scratch(slices, problem, grad_weight, packed=method.sort)
    for piece in slices:
        dz = scratch.logit_gradient(piece)  # (N, width)
        part = problem.classes(piece.start, piece.stop)
        rows = None if order is None else order[piece.start : piece.stop]
        if rows is not None:
            part = replace(part, weight=torch.index_select(C, 0, rows, out=scratch.packed_weight(piece)))
        active = _every_tile(dz, tile)
        write_logit_gradient(
            part, V, piece.start, statistics, grad_loss, grad_lse, dz, tile,
            active=active if method.eps > 0 else None, eps=method.eps,
        )  # fmt: skip
        lists = ActiveLists(active)
        if accumulator is not None:
            add_input_gradient(dz, part.weight, lists, accumulator, tile, product, first=piece.start == 0)
        if grad_weight is not None:
            target = grad_weight[piece.start : piece.stop] if rows is None else grad_weight
            write_weight_gradient(dz, E, lists, rows, target, tile, product)
        if grad_bias is not None:  # from all of dz: skipped tiles are written too, and one sum needs no filter
            places = slice(piece.start, piece.stop) if rows is None else rows
            grad_bias[places] = column_sum(dz).to(grad_bias.dtype)
    del scratch, dz, part  # the spare buffer, before dE is rounded into memory of its own
    if accumulator is None:
        return Gradients(None, grad_weight, grad_bias)
    return Gradients(accumulator.to(E.dtype), grad_weight, grad_bias)


def plan(problem: Problem, needs: Needs, method: Method, width: int | None = None) -> list[Slice]:
    """The slices of the vocabulary; `width` overrides the choice."""
    return plan_slices(
        problem.tokens, problem.vocab_size, problem.hidden_size, problem.weight.element_size(),
        in_place=needs.weight, programs=multiprocessors(problem.weight.device), width=width, packed=method.sort,
    )  # fmt: skip


def class_order(problem: Problem, slices: list[Slice]) -> Tensor:  # (V,) int64
    """The classes of each slice by their average logit, descending.

    Within slices, not over all of the vocabulary: a slice's rows of dC then remain one block of memory, the rows
    behind it stay free for scratch, and slices can be wide. The paper's grouping loses at most one tile a slice by it,
    since each slice's likely classes still come first in it.
    """
    average = average_logits(problem.weight, problem.input, problem.bias)
    pieces = [torch.argsort(average[p.start : p.stop], descending=True, stable=True) + p.start for p in slices]
    return torch.cat(pieces)


def _reordered(problem: Problem, order: Tensor) -> Problem:
    """Bias and targets in the new order of the classes; weight stays, slices of it are packed."""
    position = torch.empty_like(order)
    position[order] = torch.arange(len(order), device=order.device)
    inside = (problem.target >= 0) & (problem.target < problem.vocab_size)
    target = torch.where(inside, position[problem.target.clamp(0, problem.vocab_size - 1)], problem.target)
    bias = None if problem.bias is None else problem.bias[order]
    return replace(problem, target=target, bias=bias)


def _every_tile(dz: Tensor, tile: Tile) -> Tensor:
    """Flags of the slice's tiles, all set: what a kernel without a filter leaves them."""
    shape = (-(-dz.shape[0] // tile.block_n), -(-dz.shape[1] // tile.block_v))
    return torch.ones(shape, dtype=torch.int32, device=dz.device)
