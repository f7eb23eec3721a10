"""Which (token, vocabulary tile) pairs are computed, from what the forward saw of them.

Replacing the pair (n, t) by the model changes its logit gradients by a vector of norm
    a_nt = |g_n + l_n| m_nt |c_nt - q_t|.
A pair is *active*, computed exactly, if it holds the token's target or a_nt spread_t exceeds a threshold, the largest
with which both errors stay within the tolerance. They are relative to what the targets alone would give,
sum_n (g_n (1 - beta - p_y))^2. Errors of different tiles have nothing to do with each other's direction; those of one
class by different tokens agree in part (COHERENCE), for E has a mean:
    |error of dE|^2 ~ sum over inactive pairs of (a_nt spread_t)^2
    |error of dC|^2 ~ |E|^2 sum over tiles of [ sum of a_nt^2 + (COHERENCE * sum of a_nt)^2 ]
Both come from one histogram of a_nt by tile and power of two, before anything is read on the host.

Every step is one launch, since nothing hides the host's time here: the forward is over, the products wait for it.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.linear_cross_entropy.problem import Problem, Statistics
from kernels.linear_cross_entropy.tail.method import TailMethod
from kernels.linear_cross_entropy.tail.model import TailModel
from kernels.linear_cross_entropy.tail.tile_statistics import TileStatistics
from kernels.linear_cross_entropy.tail.upstream import (
    BOUND,
    INPUT_ERROR,
    LARGEST,
    ONE_HOT,
    P_SCALE,
    WEIGHT_ERROR,
    Upstream,
)

BINS = 64  # of squared score, each half of the one before; the first is empty, the last holds all that is smaller
BLOCK = 1024  # tokens a step
SCALED_DTYPE = torch.float16  # of the tail: fp16 lacks the range, so it is kept in a unit


@dataclass(frozen=True)
class Routing:
    """What is computed and what is modelled; all on the device."""

    totals: Tensor  # (TOTALS,) fp32: its places are named in upstream.py
    threshold: Tensor  # (T,) fp32: pairs whose a_nt exceeds their tile's are active
    counts: Tensor  # (T,) int32: active pairs of a tile
    first_block: Tensor  # (T + 2,) int32: where its blocks begin; and the modelled share of the mass, in millionths
    tail: Tensor  # (T, N) in E's dtype: (g + l) m / unit of inactive pairs, 0 of active ones
    flat_tail: Tensor | None  # (T, N), likewise: g * mean slope / unit, under a softcap with smoothing
    tail_mass: Tensor  # (T,) fp32: its sum over the tokens
    tail_weight: Tensor  # (T,) fp32: the sum of its absolute values, for upstream gradients may have both signs

    @property
    def expected_errors(self) -> Tensor:
        """(2,) fp32: of dE and dC, relative, as the thresholds were chosen for."""
        return self.totals[INPUT_ERROR.value : WEIGHT_ERROR.value + 1]

    @property
    def unit(self) -> Tensor | None:
        """() fp32: the largest |g| and |g + l|, which keeps tail within the range of fp16; None for 1."""
        return self.totals[LARGEST.value] if self.tail.dtype == SCALED_DTYPE else None


@triton.jit
def scores(tile_lse, residual, mass_slope, p_scale, lse, place, rows, mask, SOFTCAP: tl.constexpr):
    """((g + l) m, a) of a tile's tokens."""
    mass = tl.exp(tl.load(tile_lse + place, mask=mask, other=float("-inf")) - tl.load(lse + rows, mask=mask, other=0.0))
    if SOFTCAP:
        mass *= tl.load(mass_slope + place, mask=mask, other=0.0).to(tl.float32)
    scale = tl.load(p_scale + rows, mask=mask, other=0.0)
    # Rows without a gradient may have no normalisation either: exp could be inf there, and inf * 0 nan.
    weighted = tl.where(scale == 0.0, 0.0, mass * scale)
    distance = tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
    return weighted, tl.abs(weighted) * distance


@triton.jit(do_not_specialize=["N"])
def histogram_kernel(
    tile_lse,  # (T, N) fp32
    residual,  # (T, N) bf16
    mass_slope,  # (T, N) bf16, unused without SOFTCAP
    relative,  # (T,) fp32: spread over its root mean square
    p_scale,  # (N,) fp32
    lse,  # (N,) fp32
    totals,  # (TOTALS,) fp32
    left,  # (T, 3, BINS) fp32, out: of pairs in this bin and those after, sums of (a relative)^2, a^2 and (sum of a)^2
    N,
    SOFTCAP: tl.constexpr,
    BINS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # A program owns a tile.
    tile = tl.program_id(0)
    factor = tl.load(relative + tile)
    largest = tl.load(totals + LARGEST)
    ceiling = tl.log2(largest * largest * 2.0)  # |c - q|^2 <= 2; a wider spread than the mean's is clamped to bin 1
    total = tl.zeros((BINS,), tl.int32)
    for first in range(0, N, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        mask = rows < N
        place = tile.to(tl.int64) * N + rows
        _, score = scores(tile_lse, residual, mass_slope, p_scale, lse, place, rows, mask, SOFTCAP)
        score *= factor
        depth = ceiling - tl.log2(tl.maximum(score * score, 1e-37))
        # A nan fails every comparison, lands in bin 0 and is counted nowhere: its pair is active.
        bin = tl.where(depth > -20.0, tl.minimum(tl.maximum(depth, 0.0), BINS - 2.0) + 1.0, 0.0).to(tl.int32)
        bin = tl.where(mask, bin, BINS - 1)
        total += tl.histogram(bin, BINS)
    bins = tl.arange(0, BINS)
    # Of what is 2^-62 of the largest nothing is known but that; it and the padding count as 0.
    counts = tl.where((bins > 0) & (bins < BINS - 1), total, 0).to(tl.float32)
    middle = tl.exp2(ceiling + 1.0 - bins.to(tl.float32)) * 0.75  # of the bin's squares
    squares = tl.cumsum(counts * middle, axis=0, reverse=True)
    sums = tl.cumsum(counts * tl.sqrt(middle), axis=0, reverse=True) / factor
    place = tile * (3 * BINS) + bins
    tl.store(left + place, squares)
    tl.store(left + place + BINS, squares / (factor * factor))
    tl.store(left + place + 2 * BINS, sums * sums)


@triton.jit
def choose_kernel(
    left,  # (3, BINS) fp32: summed over the tiles
    totals,  # (TOTALS,) fp32, in and out: BOUND, INPUT_ERROR and WEIGHT_ERROR
    tolerance,
    coherence,
    BINS: tl.constexpr,
):
    # One program. Errors fall from bin to bin: the first with both within the tolerance begins what is modelled.
    bins = tl.arange(0, BINS)
    largest, one_hot = tl.load(totals + LARGEST), tl.load(totals + ONE_HOT)
    squares = tl.load(left + bins)
    whole = one_hot + tl.max(squares, axis=0)
    error = tl.sqrt(squares / whole)
    spread_out = tl.load(left + BINS + bins) + coherence * coherence * tl.load(left + 2 * BINS + bins)
    weight_error = tl.sqrt(spread_out / one_hot)
    wrong = (tl.maximum(error, weight_error) > tolerance).to(tl.int32)
    choice = tl.minimum(tl.sum(wrong, axis=0), BINS - 1)
    # The upper end of the chosen bin
    tl.store(totals + BOUND, tl.sqrt(largest * largest * 2.0 * tl.exp2(1.0 - choice.to(tl.float32))))
    tl.store(totals + INPUT_ERROR, tl.sum(tl.where(bins == choice, error, 0.0), axis=0))
    tl.store(totals + WEIGHT_ERROR, tl.sum(tl.where(bins == choice, weight_error, 0.0), axis=0))


@triton.jit(do_not_specialize=["N"])
def route_kernel(
    tile_lse,  # (T, N) fp32
    residual,  # (T, N) bf16
    mass_slope,  # (T, N) bf16, unused without SOFTCAP
    mean_slope,  # (T, N) bf16, unused without FLAT
    relative,  # (T,) fp32
    g,  # (N,) fp32
    p_scale,  # (N,) fp32
    lse,  # (N,) fp32
    target,  # (N,) int64: positions in the vocabulary order
    totals,  # (TOTALS,) fp32
    threshold,  # (T,) fp32, out; given with GIVEN
    counts,  # (T,) int32, out
    tail,  # (T, N), out
    flat_tail,  # (T, N), out with FLAT
    tail_mass,  # (T,) fp32, out
    tail_weight,  # (T,) fp32, out
    N,
    tile_classes,
    SOFTCAP: tl.constexpr,
    FLAT: tl.constexpr,
    SCALED: tl.constexpr,
    GIVEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # A program owns a tile.
    tile = tl.program_id(0)
    if GIVEN:
        bound = tl.load(threshold + tile)
    else:
        bound = tl.load(totals + BOUND) / tl.load(relative + tile)
        tl.store(threshold + tile, bound)
    unit = 1.0
    if SCALED:
        unit = 1.0 / tl.load(totals + LARGEST)
    count = tl.zeros((BLOCK,), tl.int32)
    mass = tl.zeros((BLOCK,), tl.float32)
    weight = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, N, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        mask = rows < N
        place = tile.to(tl.int64) * N + rows
        weighted, score = scores(tile_lse, residual, mass_slope, p_scale, lse, place, rows, mask, SOFTCAP)
        loss = tl.load(g + rows, mask=mask, other=0.0)
        active = is_active(score, bound, target, loss, p_scale, rows, mask, tile, tile_classes)
        modelled = tl.where(active, 0.0, weighted * unit)
        tl.store(tail + place, modelled.to(tail.dtype.element_ty), mask=mask)
        mass += modelled
        weight += tl.abs(modelled)
        if FLAT:
            slope = tl.load(mean_slope + place, mask=mask, other=0.0).to(tl.float32)
            flat = tl.where(active | (loss == 0.0), 0.0, loss * slope * unit)
            tl.store(flat_tail + place, flat.to(flat_tail.dtype.element_ty), mask=mask)
        count += active.to(tl.int32)
    tl.store(counts + tile, tl.sum(count, axis=0))
    tl.store(tail_mass + tile, tl.sum(mass, axis=0))
    tl.store(tail_weight + tile, tl.sum(weight, axis=0))


@triton.jit
def is_active(score, bound, target, loss, p_scale, rows, mask, tile, tile_classes):
    """Whether a pair is computed: its score, or that it holds the target of a row that counts."""
    y = tl.load(target + rows, mask=mask, other=-1)
    # Of lse - loss, say, g + l is 0 in rows that have a gradient all the same: their target's.
    counted = (loss != 0.0) | (tl.load(p_scale + rows, mask=mask, other=0.0) != 0.0)
    holds = (y >= tile * tile_classes) & (y < (tile + 1) * tile_classes) & counted
    return (holds | (score > bound) | (score != score)) & mask  # noqa: PLR0124 - a nan is computed, not hidden


@triton.jit(do_not_specialize=["T"])
def first_block_kernel(
    counts,  # (T,) int32
    tail_weight,  # (T,) fp32
    totals,  # (TOTALS,) fp32
    first_block,  # (T + 2,) int32, out
    T,
    ROWS: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program: first_block_t = sum over earlier tiles of ceil(counts / ROWS), T + 1 of them; and the modelled share.
    done = tl.zeros((), tl.int32)
    weight = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, T, BLOCK):
        tiles = first + tl.arange(0, BLOCK)
        blocks = (tl.load(counts + tiles, mask=tiles < T, other=0) + (ROWS - 1)) // ROWS
        tl.store(first_block + tiles + 1, done + tl.cumsum(blocks, axis=0), mask=tiles < T)
        done += tl.sum(blocks, axis=0)
        weight += tl.load(tail_weight + tiles, mask=tiles < T, other=0.0)
    tl.store(first_block, 0)
    modelled = tl.sum(weight, axis=0)
    if SCALED:
        modelled *= tl.load(totals + LARGEST)
    whole = tl.load(totals + P_SCALE)
    tl.store(first_block + T + 1, (modelled / whole * 1e6).to(tl.int32))


@triton.jit(do_not_specialize=["N"])
def list_kernel(
    tile_lse,  # (T, N) fp32
    residual,  # (T, N) bf16
    mass_slope,  # (T, N) bf16, unused without SOFTCAP
    g,  # (N,) fp32
    p_scale,  # (N,) fp32
    lse,  # (N,) fp32
    target,  # (N,) int64: positions in the vocabulary order
    threshold,  # (T,) fp32
    first_block,  # (T + 2,) int32
    tokens,  # (blocks * ROWS,) int32, out: of every tile's active pairs, ascending; -1 in padding
    tile_of_block,  # (blocks,) int32, out
    N,
    tile_classes,
    SOFTCAP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # A program owns a tile and walks over its tokens in order.
    tile = tl.program_id(0)
    begin = tl.load(first_block + tile)
    end = tl.load(first_block + tile + 1)
    bound = tl.load(threshold + tile)
    count = begin * ROWS
    if end > begin:
        for first in range(0, N, BLOCK):
            rows = first + tl.arange(0, BLOCK)
            mask = rows < N
            place = tile.to(tl.int64) * N + rows
            _, score = scores(tile_lse, residual, mass_slope, p_scale, lse, place, rows, mask, SOFTCAP)
            loss = tl.load(g + rows, mask=mask, other=0.0)
            active = is_active(score, bound, target, loss, p_scale, rows, mask, tile, tile_classes)
            flags = active.to(tl.int32)
            tl.store(tokens + count + tl.cumsum(flags, axis=0) - 1, rows, mask=active)
            count += tl.sum(flags, axis=0)
        padding = count + tl.arange(0, ROWS)
        tl.store(tokens + padding, -1, mask=padding < end * ROWS)
        for first in range(begin, end, BLOCK):
            blocks = first + tl.arange(0, BLOCK)
            tl.store(tile_of_block + blocks, tile, mask=blocks < end)


def route(
    problem: Problem,
    statistics: Statistics,  # its lse
    tiles: TileStatistics,
    model: TailModel,
    target: Tensor,  # (N,) int64: positions in the vocabulary order
    given: Upstream,
    method: TailMethod,
    block_rows: int,  # tokens of a block of active pairs: a tile's list is padded to it
) -> Routing:
    """Routes for relative errors of dE and dC of `method.tolerance`."""
    T, N = tiles.lse.shape
    has_softcap, smooth = problem.softcap > 0, problem.label_smoothing > 0
    device, dtype = tiles.lse.device, problem.input.dtype
    scaled = dtype == SCALED_DTYPE
    new = lambda *shape: torch.empty(shape, dtype=torch.float32, device=device)  # noqa: E731
    left, tail_mass, tail_weight = new(T, 3, BINS), new(T), new(T)
    histogram_kernel[(T,)](
        tiles.lse, tiles.residual, tiles.mass_slope, model.relative_spread, given.p_scale, statistics.lse, given.totals,
        left, N, SOFTCAP=has_softcap, BINS=BINS, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    choose_kernel[(1,)](left.sum(dim=0), given.totals, method.tolerance, method.coherence, BINS=BINS, num_warps=1)
    threshold = new(T) if method.threshold is None else torch.full((T,), method.threshold, device=device)
    counts, first_block = (torch.empty(n, dtype=torch.int32, device=device) for n in (T, T + 2))
    tail = torch.empty(T, N, dtype=dtype, device=device)
    flat_tail = torch.empty(T, N, dtype=dtype, device=device) if has_softcap and smooth else None
    route_kernel[(T,)](
        tiles.lse, tiles.residual, tiles.mass_slope, tiles.mean_slope, model.relative_spread,
        given.loss, given.p_scale, statistics.lse, target, given.totals, threshold, counts, tail, flat_tail, tail_mass,
        tail_weight,
        N, model.tile_classes,
        SOFTCAP=has_softcap, FLAT=flat_tail is not None, SCALED=scaled,
        GIVEN=method.threshold is not None, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    first_block_kernel[(1,)](
        counts, tail_weight, given.totals, first_block, T, ROWS=block_rows, SCALED=scaled, BLOCK=BLOCK, num_warps=4
    )
    return Routing(given.totals, threshold, counts, first_block, tail, flat_tail, tail_mass, tail_weight)


def list_pairs(
    problem: Problem,
    statistics: Statistics,
    tiles: TileStatistics,
    model: TailModel,
    target: Tensor,
    given: Upstream,
    routing: Routing,
    blocks: int,
    block_rows: int,
) -> tuple[Tensor, Tensor]:  # (blocks * block_rows,) and (blocks,) int32
    """The tokens of every tile's active pairs, tile after tile, -1 where a list is padded; and each block's tile."""
    T, N = tiles.lse.shape
    tokens, tile_of_block = (
        torch.empty(n, dtype=torch.int32, device=target.device) for n in (blocks * block_rows, blocks)
    )
    list_kernel[(T,)](
        tiles.lse, tiles.residual, tiles.mass_slope, given.loss, given.p_scale, statistics.lse, target,
        routing.threshold, routing.first_block, tokens, tile_of_block, N, model.tile_classes,
        SOFTCAP=problem.softcap > 0, ROWS=block_rows, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    return tokens, tile_of_block
