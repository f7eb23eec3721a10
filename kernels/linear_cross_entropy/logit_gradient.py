"""Logit gradient of a slice of the vocabulary: recompute its logits, write dz in the operands' dtype.

    dz_nv = [ (g_n + l_n) * p_nv - g_n * ((1 - beta) * [v = y_n] + beta / V) ] * (ds/dz)_nv

g_n is the gradient of the token's loss, l_n that of its lse, p = exp(s - maximum) / total, s the (softcapped) logit.
The one-hot and the smoothing are subtracted in fp32, before the one rounding. Not materialised: more than
one slice, N * width * itemsize bytes, in memory the caller owns.

FILTER is the paper's gradient filter: a tile where every |dz_nv| <= eps * (|g_n| + |l_n|) gets flag 0, and no
product reads it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.linear_cross_entropy.config import Tile, multiprocessors, vocabulary_groups
from kernels.linear_cross_entropy.launch import cdiv
from kernels.linear_cross_entropy.operands import row_major
from kernels.linear_cross_entropy.primitives import capped, logits_tile, scaled_maximum, shifted_exp, store_tile
from kernels.linear_cross_entropy.problem import Problem, Statistics


@triton.jit(do_not_specialize=["N", "first_class", "tiles_per_group"])
def logit_gradient_kernel(
    input,  # (N, D)
    weight,  # (width, D): the slice's rows
    bias,  # (width,), unused without HAS_BIAS
    target,  # (N,) int64: position in the vocabulary order of the slices
    maximum,  # (N,) fp32
    total,  # (N,) fp32
    grad_loss,  # (N,) fp32: g
    grad_lse,  # (N,) fp32: l
    dz,  # (N, width), out
    active,  # (token blocks, tiles) int32, out with FILTER
    N,
    width,
    D,
    stride_input,
    stride_weight,
    stride_dz,
    first_class,
    tiles_per_group,
    softcap,
    keep,  # 1 - beta
    smooth,
    eps,
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    FILTER: tl.constexpr,
    PRECISE: tl.constexpr,
    TMA: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # A program owns one block of tokens and one group of consecutive tiles, as in the forward: what belongs to a
    # token is loaded once, and programs side by side read the same rows of weight, from L2.
    token_blocks = tl.cdiv(N, BLOCK_N)
    tiles = tl.cdiv(width, BLOCK_V)
    block = tl.program_id(0) % token_blocks
    row = block * BLOCK_N
    first = tl.program_id(0) // token_blocks * tiles_per_group
    last = tl.minimum(first + tiles_per_group, tiles)

    rows = row + tl.arange(0, BLOCK_N)
    in_batch = rows < N
    local = tl.arange(0, BLOCK_V)
    g = tl.load(grad_loss + rows, mask=in_batch, other=0.0)
    p_scale = g + tl.load(grad_lse + rows, mask=in_batch, other=0.0)
    bound = eps * (tl.abs(g) + tl.abs(p_scale - g))
    top = tl.load(maximum + rows, mask=in_batch, other=0.0)
    e_scale = tl.div_rn(p_scale, tl.load(total + rows, mask=in_batch, other=1.0))
    top, correction = scaled_maximum(top, PRECISE)
    e_scale *= correction
    broken = e_scale != e_scale  # noqa: PLR0124 - a nan in the row's operands is in its total: no filter may drop it
    # Rows without a gradient may have no normalisation either: exp could be inf there, and inf * 0 nan.
    top = tl.where(p_scale == 0.0, float("inf"), top)
    e_scale = tl.where(p_scale == 0.0, 0.0, e_scale)
    g_smooth = g * smooth
    y = (tl.load(target + rows, mask=in_batch, other=-1) - first_class).to(tl.int32)

    # Flattened into one loop, the copies of the next tile are in flight during the epilogue of this one.
    for tile in tl.range(first, last, flatten=TMA):
        col = tile * BLOCK_V
        z = logits_tile(
            input, weight, bias, row, col, N, width, D, stride_input, stride_weight,
            HAS_BIAS, PRECISE, TMA, BLOCK_N, BLOCK_V, BLOCK_D,
        )  # fmt: skip
        if SOFTCAP:
            z, slope = capped(z, softcap, PRECISE)
        d = shifted_exp(z, top, PRECISE)
        d = d * e_scale[:, None] - g_smooth[:, None]
        y_local = y - col
        if SOFTCAP:  # a branch between slope and its use would keep both tiles in registers
            g_keep = tl.load(grad_loss + rows, mask=in_batch, other=0.0) * keep  # no registers are left to keep g in
            d = tl.where(local[None, :] == y_local[:, None], d - g_keep[:, None], d)
            d = d * slope
        elif tl.max(((y_local >= 0) & (y_local < BLOCK_V)).to(tl.int32), axis=0) > 0:  # few tiles hold a target
            g_keep = tl.load(grad_loss + rows, mask=in_batch, other=0.0) * keep
            d = tl.where(local[None, :] == y_local[:, None], d - g_keep[:, None], d)
        if FILTER:
            excess = tl.where((local < width - col)[None, :], tl.abs(d), 0.0)
            any_large = tl.max(((tl.max(excess, axis=1) > bound) | broken).to(tl.int32), axis=0)
            tl.store(active + block * tiles + tile, any_large)
        # A filtered tile is written too, and never read: a branch around the store spills registers.
        store_tile(dz, row, col, d, N, width, stride_dz, TMA, BLOCK_N, BLOCK_V)


def write_logit_gradient(
    problem: Problem,  # weight and bias are the slice's; target counts in the order of the slices
    vocab_size: int,
    first_class: int,
    statistics: Statistics,
    grad_loss: Tensor,  # (N,)
    grad_lse: Tensor,  # (N,)
    dz: Tensor,  # (N, width), out
    tile: Tile,
    active: Tensor | None = None,  # (token blocks, tiles) int32, out: given, the tile is filtered
    eps: float = 0.0,
) -> None:
    """dz of the slice."""
    N, width = problem.tokens, problem.vocab_size
    token_blocks, tiles = cdiv(N, tile.block_n), cdiv(width, tile.block_v)
    groups = vocabulary_groups(token_blocks, tiles, multiprocessors(dz.device), tiles)
    tiles_per_group = cdiv(tiles, groups)
    has_softcap = problem.softcap > 0
    logit_gradient_kernel[(token_blocks * cdiv(tiles, tiles_per_group),)](
        row_major(problem.input, (tile.block_n, tile.block_d), tile.tma),
        row_major(problem.weight, (tile.block_v, tile.block_d), tile.tma),
        problem.bias, problem.target, statistics.maximum, statistics.total, grad_loss, grad_lse,
        row_major(dz, (tile.block_n, tile.block_v), tile.tma), active,
        N, width, problem.hidden_size,
        problem.input.stride(0), problem.weight.stride(0), dz.stride(0), first_class, tiles_per_group,
        problem.softcap, 1.0 - problem.label_smoothing, problem.label_smoothing / vocab_size, eps,
        HAS_BIAS=problem.bias is not None, SOFTCAP=has_softcap, FILTER=active is not None,
        PRECISE=problem.input.dtype == torch.float32, TMA=tile.tma, **tile.blocks, **tile.options,
    )  # fmt: skip
