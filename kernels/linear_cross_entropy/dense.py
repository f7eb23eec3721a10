"""Exact gradients: every tile of the logits is recomputed, three products in the backward, four in all.

For each slice of the vocabulary, in order:
    dz        = logit gradient of the slice            Triton, N x width in the operands' dtype
    dE       += dz @ C[slice]                          cuBLAS, fp32, in place
    dC[slice] = dz.T @ E                               cuBLAS, K = N: one product, one rounding
    db[slice] = sum over tokens of dz                  fp32, one rounding
Not materialised: the logits, and an fp32 copy of dC. Beside the gradients live an fp32 dE (N * D * 4 bytes;
none for fp32 operands) and at most SPARE_BYTES of dz; slices.py says where the rest of dz is.

Numerics: one rounding of dz (as eager has), none of the logits (eager has one), fp32 accumulation
throughout. Each element of dC is written once, by one product, and dE by products in a fixed order:
two runs give the same bits.
"""

import torch
from torch import Tensor

from kernels.linear_cross_entropy.column_sum import column_sum
from kernels.linear_cross_entropy.config import Tile, choose_tile, multiprocessors
from kernels.linear_cross_entropy.logit_gradient import write_logit_gradient
from kernels.linear_cross_entropy.problem import Gradients, Needs, Problem, Statistics
from kernels.linear_cross_entropy.products import add_product, write_product
from kernels.linear_cross_entropy.slices import Scratch, plan_slices


def gradients(
    problem: Problem,
    statistics: Statistics,
    grad_loss: Tensor,  # (N,) fp32, 0 in rows that do not count
    grad_lse: Tensor,  # (N,) fp32, 0 in rows that do not count
    needs: Needs,
    *,
    tile: Tile | None = None,
    width: int | None = None,
) -> Gradients:
    """dE, dC and db of sum(grad_loss * loss + grad_lse * lse). `tile`, `width`: for tests and sweeps."""
    tile = tile or choose_tile(problem)
    E, C = problem.input, problem.weight
    N, V, D = problem.tokens, problem.vocab_size, problem.hidden_size
    grad_weight = torch.empty((V, D), dtype=C.dtype, device=C.device) if needs.weight else None
    grad_bias = torch.empty(V, dtype=C.dtype, device=C.device) if needs.bias else None
    accumulator = torch.empty((N, D), dtype=torch.float32, device=E.device) if needs.input else None
    slices = plan_slices(
        N, V, D, C.element_size(), in_place=needs.weight, programs=multiprocessors(C.device), width=width
    )
    scratch = Scratch(slices, problem, grad_weight)
    for piece in slices:
        dz = scratch.logit_gradient(piece)  # (N, width)
        part = problem.classes(piece.start, piece.stop)
        write_logit_gradient(part, V, piece.start, statistics, grad_loss, grad_lse, dz, tile)
        if accumulator is not None:
            add_product(accumulator, dz, part.weight, first=piece.start == 0)  # (N, width) @ (width, D)
        if grad_bias is not None:
            grad_bias[piece.start : piece.stop] = column_sum(dz)
        if grad_weight is not None:
            write_product(grad_weight[piece.start : piece.stop], dz.t(), E)  # (width, N) @ (N, D)
    del scratch, dz  # the spare buffer, before dE is rounded into memory of its own
    grad_input = None if accumulator is None else accumulator.to(E.dtype)
    return Gradients(grad_input, grad_weight, grad_bias)
