"""The forward that remembers tiles: for every token and vocabulary tile its mass and its distance from the model.

    tile_lse_nt = log sum over v in t of exp(s_nv)         so m_nt = exp(tile_lse_nt - lse_n), once lse is known
    residual_nt = | c_nt - q_t |,   c_nv = e_nv / sum over the tile of e,  e = exp(s) (ds/dz)
from three sums over the tile as it stands in registers: of e, e^2 and e q. Under a softcap also the mean of ds/dz in
the tile, weighted by p (`mass_slope`) and not weighted (`mean_slope`).

No running normalisation: a tile needs no other. lse is the log-sum-exp over T numbers, in a second kernel. The logits
are never written; what is, is 6 bytes a token and tile (10 under a softcap), 1/170 (1/100) of fp32 logits at 256.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.linear_cross_entropy.config import Tile, multiprocessors, vocabulary_groups
from kernels.linear_cross_entropy.launch import cdiv
from kernels.linear_cross_entropy.operands import row_major
from kernels.linear_cross_entropy.primitives import accurate_exp, capped, logits_tile, scaled_maximum, shifted_exp
from kernels.linear_cross_entropy.problem import Problem, Statistics
from kernels.linear_cross_entropy.tail.elementwise import row_product
from kernels.linear_cross_entropy.tail.groups import TokenGroups
from kernels.linear_cross_entropy.tail.model import TailModel

PACKED_BYTES = 32 * 2**20  # of ordered rows of C at a time: they stay in L2, and no longer launch is faster
COMBINE_TOKENS, COMBINE_TILES = 64, 32


@dataclass(frozen=True)
class TileStatistics:
    """Of every tile and token, T x N."""

    lse: Tensor  # fp32
    residual: Tensor  # bf16, rounded up
    mass_slope: Tensor | None  # bf16, under a softcap
    mean_slope: Tensor | None  # bf16, under a softcap with smoothing


@triton.jit(do_not_specialize=["N", "tiles_per_part", "ignore_index"])
def tile_statistics_kernel(  # noqa: PLR0915 - all that one tile is asked while it is in registers
    input,  # (N, D)
    weight,  # (V, D): the slice's rows, in order
    bias,  # (V,) of the slice, unused without HAS_BIAS
    target,  # (N,) int64: position in the slice's order, counted from its first class
    shape,  # (K, V of the head) fp32, from the slice's first class on
    shape_square,  # (K, T of the head) fp32, likewise
    group,  # (blocks,) int32: the tokens' group, unused without GROUPED
    tile_lse,  # (T, N) fp32, out: of the slice, as are the following
    residual,  # (T, N) bf16, out
    mass_slope,  # (T, N) bf16, out with SOFTCAP
    mean_slope,  # (T, N) bf16, out with SOFTCAP and SMOOTH
    logit_sums,  # (parts, N) fp32, out with SOFTCAP and SMOOTH: sum of the part's softcapped logits
    target_logit,  # (N,) fp32, out: untouched where the target is not in the slice
    N,
    V,
    D,
    stride_input,
    stride_weight,
    stride_shape,
    stride_square,
    first_class,
    tiles_per_part,
    ignore_index,
    softcap,
    one,  # 1.0
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SMOOTH: tl.constexpr,
    GROUPED: tl.constexpr,
    TMA: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # A program owns one block of tokens and a range of consecutive vocabulary tiles, as in forward.py.
    token_blocks = tl.cdiv(N, BLOCK_N)
    row = (tl.program_id(0) % token_blocks) * BLOCK_N
    part = tl.program_id(0) // token_blocks
    first = part * tiles_per_part
    last = tl.minimum(first + tiles_per_part, tl.cdiv(V, BLOCK_V))

    rows = row + tl.arange(0, BLOCK_N)
    in_batch = rows < N
    if GROUPED:
        tokens = tl.load(group + row // BLOCK_N).to(tl.int64)
        shape += tokens * stride_shape
        shape_square += tokens * stride_square
    y = tl.load(target + rows, mask=in_batch, other=ignore_index)
    y_position = (y - first_class).to(tl.int32)
    local = tl.arange(0, BLOCK_V)
    y_logit = tl.zeros((BLOCK_N,), tl.float32)
    logit_sum = tl.zeros((BLOCK_N,), tl.float32)

    # Flattened into one loop, the copies of the next tile are in flight during the epilogue of this one.
    for tile in tl.range(first, last, flatten=TMA):
        col = tile * BLOCK_V
        z = logits_tile(
            input, weight, bias, row, col, N, V, D, stride_input, stride_weight,
            HAS_BIAS, False, TMA, BLOCK_N, BLOCK_V, BLOCK_D,
        )  # fmt: skip
        if SOFTCAP:
            z, _ = capped(z, softcap, False)
            if SMOOTH:  # padding columns hold 0 here, not -inf
                logit_sum += tl.sum(z, axis=1)
        else:
            z = z * one  # see forward.py: keeps ptxas from serialising the products
        y_local = y_position - col
        hits = tl.max(((y_local >= 0) & (y_local < BLOCK_V)).to(tl.int32), axis=0)
        if hits > 0:
            y_logit += tl.sum(tl.where(local[None, :] == y_local[:, None], z, 0.0), axis=1)
        if col + BLOCK_V > V:
            z = tl.where((local < V - col)[None, :], z, float("-inf"))
        top = tl.max(z, axis=1)
        finite = tl.where(top == float("-inf"), 0.0, top)
        hi, correction = scaled_maximum(finite, False)
        e = shifted_exp(z, hi, False)
        total = tl.sum(e, axis=1)
        place = (tl.zeros((BLOCK_N,), tl.int64) + tile) * N + rows
        tl.store(tile_lse + place, finite + tl.log(total * correction), mask=in_batch)
        mass = total
        if SOFTCAP:
            t = tl.maximum(z, -softcap) * (1.0 / softcap)  # of masked classes, -inf otherwise
            u = 1.0 - t * t
            if SMOOTH:
                slopes = tl.sum(tl.where((local < V - col)[None, :], u, 0.0), axis=1)
                tl.store(mean_slope + place, (slopes * (1.0 / BLOCK_V)).to(tl.bfloat16), mask=in_batch)
            e = e * u
            mass = tl.sum(e, axis=1)
            ratio = mass / tl.where(total > 0.0, total, 1.0)
            tl.store(mass_slope + place, ratio.to(tl.bfloat16), mask=in_batch)
        q = tl.load(shape + col + local, mask=local < V - col, other=0.0)
        square = tl.sum(e * e, axis=1)
        dot = tl.sum(e * q[None, :], axis=1)
        scale = 1.0 / tl.where(mass > 0.0, mass, 1.0)
        square = square * scale * scale
        q_square = tl.load(shape_square + tile)
        distance = square - 2.0 * dot * scale + q_square
        # Not below its own rounding, and rounded up to bf16: what a bound is made of may not be too small.
        distance = tl.maximum(distance, 1e-6 * (square + q_square))
        tl.store(residual + place, (tl.sqrt(distance) * 1.004).to(tl.bfloat16), mask=in_batch)

    if SOFTCAP and SMOOTH:
        tl.store(logit_sums + part * N + rows, logit_sum, mask=in_batch)
    mine = (y_position >= first * BLOCK_V) & (y_position < tl.minimum(last * BLOCK_V, V))
    tl.store(target_logit + rows, y_logit, mask=in_batch & mine)


@triton.jit(do_not_specialize=["N", "T"])
def combine_tiles_kernel(
    tile_lse,  # (T, N) fp32
    target_logit,  # (N,) fp32
    logit_mean,  # (N,) fp32: the smoothing term's sum_v z_nv / V; unused without SMOOTH
    target,  # (N,) int64
    loss,  # (N,) fp32, out, as are the following
    lse,  # (N,)
    nll,  # (N,)
    maximum,  # (N,): the largest tile lse
    total,  # (N,): sum over tiles of exp(tile_lse - maximum)
    N,
    T,
    V,
    ignore_index,
    label_smoothing,
    SMOOTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    # A program owns BLOCK_N tokens.
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_batch = rows < N
    local = tl.arange(0, BLOCK_T)
    top = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    mass = tl.zeros((BLOCK_N,), tl.float32)
    for first in range(0, T, BLOCK_T):
        tiles = first + local
        mask = (tiles < T)[:, None] & in_batch[None, :]
        part = tl.load(tile_lse + tiles.to(tl.int64)[:, None] * N + rows[None, :], mask=mask, other=float("-inf"))
        new_top = tl.maximum(top, tl.max(part, axis=0))
        finite = tl.where(new_top == float("-inf"), 0.0, new_top)
        mass = mass * accurate_exp(top - finite) + tl.sum(accurate_exp(part - finite[None, :]), axis=0)
        top = new_top
    log_mass = tl.log(mass)
    y = tl.load(target + rows, mask=in_batch, other=0)
    outside = (y < 0) | (y >= V)
    row_nll = (top - tl.load(target_logit + rows, mask=in_batch, other=0.0)) + log_mass
    # The target's tile holds its logit, so less than nothing is the rounding of two logarithms.
    row_nll = tl.where(row_nll < 0.0, 0.0, row_nll)
    row_nll = tl.where(outside, float("nan"), row_nll)
    row_loss = row_nll
    if SMOOTH:
        average = tl.load(logit_mean + rows, mask=in_batch, other=0.0)
        row_loss = (1.0 - label_smoothing) * row_nll + label_smoothing * ((top - average) + log_mass)
    ignored = y == ignore_index
    tl.store(loss + rows, tl.where(ignored, 0.0, row_loss), mask=in_batch)
    tl.store(nll + rows, tl.where(ignored, 0.0, row_nll), mask=in_batch)
    tl.store(lse + rows, tl.where(ignored, 0.0, top + log_mass), mask=in_batch)
    tl.store(maximum + rows, top, mask=in_batch)
    tl.store(total + rows, mass, mask=in_batch)


def tile_statistics(
    problem: Problem,  # targets are class ids
    model: TailModel,
    target: Tensor,  # (N,) int64: positions in the model's order
    tile: Tile,
    found: TileStatistics,  # out
    groups: TokenGroups | None = None,  # of the model, None for one
    packed_bytes: int = PACKED_BYTES,
) -> Statistics:
    """Loss, lse and nll of every token, and every tile's part in them. `tile.block_v` is the model's tile."""
    assert tile.block_v == model.tile_classes
    E, C = problem.input, problem.weight
    N, V, D = problem.tokens, problem.vocab_size, problem.hidden_size
    T, has_softcap, smooth = model.tiles, problem.softcap > 0, problem.label_smoothing > 0
    new = lambda *shape, dtype=torch.float32: torch.empty(shape, dtype=dtype, device=E.device)  # noqa: E731
    target_logit = new(N)
    tiles_per_launch = T
    if model.order is not None:
        tiles_per_launch = max(1, packed_bytes // (tile.block_v * D * C.element_size()))
        packed = new(min(V, tiles_per_launch * tile.block_v), D, dtype=C.dtype)
    token_blocks = cdiv(N, tile.block_n)
    sums: list[Tensor] = []
    for first in range(0, T, tiles_per_launch):
        last = min(first + tiles_per_launch, T)
        classes = slice(first * tile.block_v, min(last * tile.block_v, V))
        weight, bias = C[classes], None if problem.bias is None else problem.bias[classes]
        if model.order is not None:
            rows = model.order[classes]
            weight = torch.index_select(C, 0, rows, out=packed[: len(rows)])
            bias = None if problem.bias is None else problem.bias[rows]
        tiles = last - first
        parts = vocabulary_groups(token_blocks, tiles, multiprocessors(E.device), tiles)
        tiles_per_part = cdiv(tiles, parts)
        parts = cdiv(tiles, tiles_per_part)
        logit_sums = new(parts, N) if has_softcap and smooth else None
        if logit_sums is not None:
            sums.append(logit_sums)
        tile_statistics_kernel[(token_blocks * parts,)](
            row_major(E, (tile.block_n, tile.block_d), tile.tma),
            row_major(weight, (tile.block_v, tile.block_d), tile.tma),
            bias, target, model.shape[:, classes], model.shape_square[:, first:last],
            None if groups is None else groups.of_block,
            found.lse[first:last], found.residual[first:last],
            None if found.mass_slope is None else found.mass_slope[first:last],
            None if found.mean_slope is None else found.mean_slope[first:last],
            logit_sums, target_logit,
            N, classes.stop - classes.start, D, E.stride(0), weight.stride(0),
            model.shape.stride(0), model.shape_square.stride(0), classes.start, tiles_per_part,
            problem.ignore_index, problem.softcap, 1.0,
            HAS_BIAS=bias is not None, SOFTCAP=has_softcap, SMOOTH=smooth, GROUPED=groups is not None, TMA=tile.tma,
            **tile.blocks, **tile.options,
        )  # fmt: skip
    logit_mean = None
    if sums:
        logit_mean = torch.cat(sums).sum(dim=0) / V
    elif smooth:
        assert model.class_sum is not None
        logit_mean = row_product(E, model.class_sum / V)
        if problem.bias is not None:
            logit_mean += problem.bias.sum(dtype=torch.float32) / V
    result = Statistics(*(new(N) for _ in range(5)))
    combine_tiles_kernel[(cdiv(N, COMBINE_TOKENS),)](
        found.lse, target_logit, logit_mean, problem.target, *result.tensors(),
        N, T, V, problem.ignore_index, problem.label_smoothing,
        SMOOTH=smooth, BLOCK_N=COMBINE_TOKENS, BLOCK_T=COMBINE_TILES,
    )  # fmt: skip
    return result


@triton.jit
def inverse_kernel(order, inverse, V, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(inverse + tl.load(order + places, mask=places < V, other=0), places.to(tl.int64), mask=places < V)


@triton.jit(do_not_specialize=["N", "ignore_index"])
def position_kernel(target, inverse, position, N, V, ignore_index, BLOCK: tl.constexpr):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y = tl.load(target + rows, mask=rows < N, other=-1)
    is_class = (y >= 0) & (y < V) & (y != ignore_index)
    place = tl.load(inverse + y, mask=is_class, other=0)
    tl.store(position + rows, tl.where(is_class, place, -1), mask=rows < N)


def positions(problem: Problem, order: Tensor | None) -> Tensor:  # (N,) int64
    """Targets as places in the vocabulary order; -1 for what is no class."""
    if order is None:
        return problem.target
    N, V = problem.tokens, problem.vocab_size
    inverse, position = torch.empty_like(order), torch.empty_like(problem.target)
    inverse_kernel[(cdiv(V, 1024),)](order, inverse, V, BLOCK=1024, num_warps=4)
    position_kernel[(cdiv(N, 1024),)](
        problem.target, inverse, position, N, V, problem.ignore_index, BLOCK=1024, num_warps=4
    )
    return position
