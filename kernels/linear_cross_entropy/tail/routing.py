"""Which (token, vocabulary tile) pairs are computed, from what the forward saw of them.

Replacing the pair (n, t) by the model changes its logit gradients by a vector of norm
    a_nt = |g_n + l_n| m_nt |c_nt - q_t|.
A pair is *active*, computed exactly, if it holds the token's target or a_nt exceeds its tile's threshold, the smaller
of two, both from one histogram of a_nt by tile and power of two, before anything is read on the host:

accuracy: a * spread_t <= const, the largest const with which both errors stay within the tolerance, relative to what the
    targets alone would give, sum_n (g_n (1 - p_y))^2. Errors of different tiles have nothing to do with each other's
    direction; those of one class by different tokens agree in part (COHERENCE), for E has a mean:
    |error of dE|^2 ~ sum over inactive pairs of (a_nt spread_t)^2
    |error of dC|^2 ~ |E|^2 sum over tiles of [ sum of a_nt^2 + (COHERENCE * sum of a_nt)^2 ]
rare classes: a class that is no target has a row of dC of about (mass of its tile) / (classes of the tile), and one pair
    may be all of its error: a_nt <= COLD * that.
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

BINS = 64  # of a^2, each twice the next; the first is empty, the last holds all that is smaller
BLOCK = 1024  # tokens a step


@dataclass(frozen=True)
class Routing:
    """What is computed and what is modelled; all on the device."""

    threshold: Tensor  # (T,) fp32: pairs whose a_nt exceeds their tile's are active
    counts: Tensor  # (T,) int32: active pairs of a tile
    tail: Tensor  # (T, N) in E's dtype: (g + l) m / unit of inactive pairs, 0 of active ones
    flat_tail: Tensor | None  # (T, N), likewise: g * mean slope / unit, under a softcap with smoothing
    unit: Tensor | None  # () fp32: the largest |g + l|, which keeps tail within the range of fp16; None for 1
    predicted_error: Tensor  # () fp32: of dE relative to its norm, as estimated above
    predicted_weight_error: Tensor  # () fp32: of dC, likewise


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
    p_scale,  # (N,) fp32: g + l
    lse,  # (N,) fp32
    top,  # () fp32: the largest a^2 there can be
    histogram,  # (T, BINS) int32, out
    tile_mass,  # (T,) fp32, out: sum over the tokens of |g + l| m
    N,
    SOFTCAP: tl.constexpr,
    BINS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # A program owns a tile.
    tile = tl.program_id(0)
    ceiling = tl.log2(tl.load(top))
    total = tl.zeros((BINS,), tl.int32)
    mass = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, N, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        mask = rows < N
        place = tile.to(tl.int64) * N + rows
        weighted, score = scores(tile_lse, residual, mass_slope, p_scale, lse, place, rows, mask, SOFTCAP)
        mass += tl.abs(weighted)
        depth = ceiling - tl.log2(tl.maximum(score * score, 1e-37))
        # A nan belongs to an active pair: where(nan < ...) puts it into bin 0.
        bin = tl.where(depth > 0.0, tl.minimum(depth, BINS - 2.0) + 1.0, 0.0).to(tl.int32)
        bin = tl.where(mask, bin, BINS - 1)
        total += tl.histogram(bin, BINS)
    tl.store(histogram + tile * BINS + tl.arange(0, BINS), total)
    tl.store(tile_mass + tile, tl.sum(mass, axis=0))


@triton.jit(do_not_specialize=["N"])
def route_kernel(
    tile_lse,  # (T, N) fp32
    residual,  # (T, N) bf16
    mass_slope,  # (T, N) bf16, unused without SOFTCAP
    mean_slope,  # (T, N) bf16, unused without FLAT
    p_scale,  # (N,) fp32: g + l
    grad_loss,  # (N,) fp32: g; unused without FLAT
    lse,  # (N,) fp32
    target,  # (N,) int64: positions in the vocabulary order
    threshold,  # (T,) fp32
    scale,  # () fp32, unused without SCALED
    starts,  # (T,) int64: where a tile's list begins; unused without LIST
    counts,  # (T,) int32, out without LIST
    tail,  # (T, N), out without LIST
    flat_tail,  # (T, N), out with FLAT, without LIST
    pairs,  # (number of active pairs, each tile's rounded up to a block) int32, out with LIST: tokens
    N,
    tile_classes,
    SOFTCAP: tl.constexpr,
    FLAT: tl.constexpr,
    LIST: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # A program owns a tile and walks over its tokens in order, so that a list is ascending.
    tile = tl.program_id(0)
    bound = tl.load(threshold + tile)
    unit = 1.0
    if SCALED:
        unit = 1.0 / tl.load(scale)
    count = tl.zeros((), tl.int32)
    for first in range(0, N, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        mask = rows < N
        place = tile.to(tl.int64) * N + rows
        weighted, score = scores(tile_lse, residual, mass_slope, p_scale, lse, place, rows, mask, SOFTCAP)
        y = tl.load(target + rows, mask=mask, other=-1)
        counted = tl.load(p_scale + rows, mask=mask, other=0.0) != 0.0
        active = ((score > bound) | (score != score)) & mask  # noqa: PLR0124 - a nan is computed, not hidden
        active |= (y >= tile * tile_classes) & (y < (tile + 1) * tile_classes) & counted
        flags = active.to(tl.int32)
        if LIST:
            spot = tl.load(starts + tile) + count + tl.cumsum(flags, axis=0) - 1
            tl.store(pairs + spot, rows, mask=active)
        else:
            tl.store(tail + place, tl.where(active, 0.0, weighted * unit).to(tail.dtype.element_ty), mask=mask)
            if FLAT:
                g = tl.load(grad_loss + rows, mask=mask, other=0.0)
                slope = tl.load(mean_slope + place, mask=mask, other=0.0).to(tl.float32)
                flat = tl.where(active | (g == 0.0), 0.0, g * slope * unit)
                tl.store(flat_tail + place, flat.to(flat_tail.dtype.element_ty), mask=mask)
        count += tl.sum(flags, axis=0)
    if not LIST:
        tl.store(counts + tile, count)


def route(
    problem: Problem,
    statistics: Statistics,  # its lse and nll
    tiles: TileStatistics,
    model: TailModel,
    target: Tensor,  # (N,) int64: positions in the vocabulary order
    grad_loss: Tensor,  # (N,) fp32
    p_scale: Tensor,  # (N,) fp32: g + l
    method: TailMethod,
) -> Routing:
    """Routes for relative errors of dE and dC of `method.tolerance`."""
    T, N = tiles.lse.shape
    device = tiles.lse.device
    has_softcap, smooth = problem.softcap > 0, problem.label_smoothing > 0
    largest = p_scale.abs().max().clamp(min=1e-30)
    top = largest.square() * 2  # |c - q|^2 <= 2
    histogram = torch.empty(T, BINS, dtype=torch.int32, device=device)
    tile_mass = torch.empty(T, dtype=torch.float32, device=device)
    histogram_kernel[(T,)](
        tiles.lse, tiles.residual, tiles.mass_slope, p_scale, statistics.lse, top, histogram, tile_mass,
        N, SOFTCAP=has_softcap, BINS=BINS, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    one_hot = (grad_loss * torch.expm1(-statistics.nll)).square()
    one_hot = torch.where(grad_loss == 0, 0.0, one_hot).sum()
    threshold, errors = thresholds(histogram, tile_mass, top, one_hot, model, problem, grad_loss, method)
    unit = largest if problem.input.dtype == torch.float16 else None  # the others have the range of fp32
    dtype = problem.input.dtype
    counts = torch.empty(T, dtype=torch.int32, device=device)
    tail = torch.empty(T, N, dtype=dtype, device=device)
    flat_tail = torch.empty(T, N, dtype=dtype, device=device) if has_softcap and smooth else None
    route_kernel[(T,)](
        tiles.lse, tiles.residual, tiles.mass_slope, tiles.mean_slope, p_scale, grad_loss,
        statistics.lse, target, threshold, unit, None, counts, tail, flat_tail, None, N, model.tile_classes,
        SOFTCAP=has_softcap, FLAT=flat_tail is not None, LIST=False, SCALED=unit is not None, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    return Routing(threshold, counts, tail, flat_tail, unit, *errors)


def thresholds(
    histogram: Tensor,  # (T, BINS) int32: pairs by a^2
    tile_mass: Tensor,  # (T,) fp32
    top: Tensor,  # () fp32
    one_hot: Tensor,  # () fp32: sum_n (g_n (1 - p_y))^2
    model: TailModel,
    problem: Problem,
    grad_loss: Tensor,  # (N,)
    method: TailMethod,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:  # (T,), and the predicted relative errors of dE and dC
    """The smaller of the two thresholds of each tile."""
    bins = torch.arange(BINS, device=histogram.device)
    upper = top * torch.exp2(1.0 - bins)  # (BINS,) of a^2; 3/4 of it is the middle of a bin
    counts = histogram.float()
    counts[:, -1] = 0.0  # padding, and what is beyond 2^-62 of the largest
    squares = counts * (upper * 0.75)
    sums = counts * (upper * 0.75).sqrt()
    # candidates: a * relative <= sqrt(upper[b]); a tile of wide spread has its bins shifted up
    relative = (model.spread / model.spread.square().mean().sqrt()).clamp(min=1e-3)  # (T,)
    shift = (2 * relative.log2()).round().long()
    first = (bins[None, :] + shift[:, None]).clamp(0, BINS - 1)  # (T, candidates): the tile's first inactive bin
    left_squares, left_sums = (x.flip(1).cumsum(1).flip(1).gather(1, first) for x in (squares, sums))
    scale = relative.square()
    whole = (one_hot + (squares.sum(1) * scale).sum()).clamp(min=1e-37)
    error = ((left_squares * scale[:, None]).sum(0) / whole).sqrt()  # (candidates,)
    weight_error = ((left_squares + (method.coherence * left_sums).square()).sum(0) / one_hot.clamp(min=1e-37)).sqrt()
    choice = (torch.maximum(error, weight_error) > method.tolerance).sum().clamp(max=BINS - 1)
    bound = upper[choice].sqrt() / relative
    # rare classes
    class_mass = tile_mass / model.tile_classes + grad_loss.sum().abs() * (problem.label_smoothing / problem.vocab_size)
    bound = torch.minimum(bound, method.cold * class_mass)
    if method.threshold is not None:
        bound = torch.full_like(bound, method.threshold)
    return bound, (error[choice], weight_error[choice])


def list_pairs(
    problem: Problem,
    statistics: Statistics,
    tiles: TileStatistics,
    model: TailModel,
    target: Tensor,
    grad_loss: Tensor,
    p_scale: Tensor,
    routing: Routing,
    starts: Tensor,  # (T,) int64
    length: int,
) -> Tensor:  # (length,) int32
    """The tokens of every tile's active pairs, tile after tile; -1 where a list is padded."""
    T, N = tiles.lse.shape
    pairs = torch.full((length,), -1, dtype=torch.int32, device=starts.device)
    route_kernel[(T,)](
        tiles.lse, tiles.residual, tiles.mass_slope, None, p_scale, grad_loss,
        statistics.lse, target, routing.threshold, None, starts, None, None, None, pairs, N,
        model.tile_classes,
        SOFTCAP=problem.softcap > 0, FLAT=False, LIST=True, SCALED=False, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    return pairs
