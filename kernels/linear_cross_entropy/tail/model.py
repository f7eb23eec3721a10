"""What a vocabulary tile looks like to the tokens that do not compute it: its shape, its centre, its spread.

Inside tile t the probabilities of every token are modelled as m_nt * q_v, with one shape q for all tokens: the softmax
over the tile of the logit of a typical token, z_v = C_v . typical(E) (+ b_v). One pass over C finds z, a second what
follows from q:
    shape    q_v                        (V,) fp32, sums to 1 in each tile
    centre   sum_v q_v C_v              (T, D) in C's dtype: what a token's tail pulls its dE towards
    spread   (sum_v q_v |C_v - centre|^2)^(1/2)    (T,): how much a wrong shape matters
    sums     sum_v C_v                  (T, D) fp32, for the smoothing, of rank one without a softcap

With a softcap s = cap tanh(z / cap) the logit gradient has a factor u = ds/dz. The shape is then that of p u,
softmax(s) u normalised, and smoothing, -(beta / V) u_nv, has a shape of its own, u_v / sum u, and a centre.

Classes come in a vocabulary order; every (V,) result here is in it.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.linear_cross_entropy.column_sum import column_sum
from kernels.linear_cross_entropy.launch import cdiv, next_power_of_2
from kernels.linear_cross_entropy.primitives import capped
from kernels.linear_cross_entropy.problem import Problem
from kernels.linear_cross_entropy.tail.elementwise import squared_distances

BLOCK_D = 64  # columns of C at a time: 128 bytes of every row of the tile
WARPS, STAGES = 8, 3


@dataclass(frozen=True)
class TailModel:
    """One shape a vocabulary tile; classes in the order that `order` gives (None: as they are)."""

    tile_classes: int  # classes of a tile; the last may have fewer
    typical: Tensor  # (K, D) fp32: the token that each group's shapes are of (groups.py; K is 1 without groups)
    order: Tensor | None  # (V,) int64
    shape: Tensor  # (K, V) fp32
    shape_square: Tensor  # (K, T) fp32: sum of the squares of a tile's shape
    centre: Tensor  # (K, T, D) in C's dtype
    spread: Tensor  # (T,) fp32
    class_sum: Tensor | None  # (D,) fp32, with smoothing and without a softcap: sum of the rows of C
    flat_shape: Tensor | None  # (V,) fp32, with smoothing under a softcap: the shape of its part
    flat_centre: Tensor | None  # (T, D) in C's dtype, likewise
    relative_spread: Tensor | None = None  # (T,) fp32: over the root of their mean square; once the forward is through

    @property
    def groups(self) -> int:
        """K."""
        return self.typical.shape[0]

    @property
    def tiles(self) -> int:
        return self.spread.shape[0]


@triton.jit
def tail_model_kernel(  # noqa: PLR0915 - two passes over one tile
    weight,  # (V, D)
    bias,  # (V,), unused without HAS_BIAS
    order,  # (V,) int64, unused without ORDERED
    mean,  # (D,) fp32: the average token
    shape,  # (V,) fp32, out
    shape_square,  # (T,) fp32, out
    centre,  # (T, D), out
    spread,  # (T,) fp32, out
    sums,  # (T, D) fp32, out with SMOOTH and without SOFTCAP
    flat_shape,  # (V,) fp32, out with SMOOTH and SOFTCAP
    flat_centre,  # (T, D), out with SMOOTH and SOFTCAP
    V,
    D,
    stride_weight,
    softcap,
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SMOOTH: tl.constexpr,
    ORDERED: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    # A program owns one tile. Both passes stream its rows; the second finds part of them in L2.
    tile = tl.program_id(0)
    places = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    inside = places < V
    rows = places.to(tl.int64)
    if ORDERED:
        rows = tl.load(order + places, mask=inside, other=0)
    local_d = tl.arange(0, BLOCK_D)

    products = tl.zeros((BLOCK_V, BLOCK_D), tl.float32)
    for d in tl.range(0, D, BLOCK_D, num_stages=STAGES):
        cols = d + local_d
        mask = inside[:, None] & (cols < D)[None, :]
        c = tl.load(weight + rows[:, None] * stride_weight + cols[None, :], mask=mask, other=0.0)
        products += c.to(tl.float32) * tl.load(mean + cols, mask=cols < D, other=0.0)[None, :]
    logit = tl.sum(products, axis=1)
    if HAS_BIAS:
        logit += tl.load(bias + rows, mask=inside, other=0.0).to(tl.float32)
    slope = tl.where(inside, 1.0, 0.0)
    if SOFTCAP:
        logit, slope = capped(logit, softcap, False)
        slope = tl.where(inside, slope, 0.0)
    logit = tl.where(inside, logit, float("-inf"))
    top = tl.max(logit, axis=0)
    top = tl.where(top == float("-inf"), 0.0, top)
    q = tl.exp(logit - top) * slope
    q_sum = tl.sum(q, axis=0)
    q = q / tl.where(q_sum > 0.0, q_sum, 1.0)
    flat = slope / tl.sum(slope, axis=0)
    tl.store(shape + places, q, mask=inside)
    tl.store(shape_square + tile, tl.sum(q * q, axis=0))
    if SMOOTH and SOFTCAP:
        tl.store(flat_shape + places, flat, mask=inside)

    norms = tl.zeros((BLOCK_V, BLOCK_D), tl.float32)
    centre_square = tl.zeros((BLOCK_D,), tl.float32)
    for d in tl.range(0, D, BLOCK_D, num_stages=STAGES):
        cols = d + local_d
        in_row = cols < D
        mask = inside[:, None] & in_row[None, :]
        c = tl.load(weight + rows[:, None] * stride_weight + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        weighted = c * q[:, None]
        norms += weighted * c
        mean_row = tl.sum(weighted, axis=0)
        centre_square += mean_row * mean_row
        out = tile.to(tl.int64) * D + cols
        tl.store(centre + out, mean_row.to(centre.dtype.element_ty), mask=in_row)
        if SMOOTH:
            if SOFTCAP:
                flat_row = tl.sum(c * flat[:, None], axis=0)
                tl.store(flat_centre + out, flat_row.to(flat_centre.dtype.element_ty), mask=in_row)
            else:
                tl.store(sums + out, tl.sum(c, axis=0), mask=in_row)
    total = tl.sum(tl.sum(norms, axis=1), axis=0)
    variance = total - tl.sum(centre_square, axis=0)
    tl.store(spread + tile, tl.sqrt(tl.maximum(variance, 1e-6 * total)))


@triton.jit
def grouped_model_kernel(
    weight,  # (V, D)
    bias,  # (V,), unused without HAS_BIAS
    order,  # (V,) int64, unused without ORDERED
    typical,  # (K, D) fp32: a token of each group
    shape,  # (K, V) fp32, out
    shape_square,  # (K, T) fp32, out
    centre,  # (K, T, D), out
    spread,  # (T,) fp32, out: the mean over the groups
    sums,  # (T, D) fp32, out with SMOOTH
    V,
    D,
    T,
    K,
    stride_weight,
    HAS_BIAS: tl.constexpr,
    SMOOTH: tl.constexpr,
    ORDERED: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # As tail_model_kernel, with both passes as products: a program owns one tile, all groups.
    tile = tl.program_id(0)
    places = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    inside = places < V
    rows = places.to(tl.int64)
    if ORDERED:
        rows = tl.load(order + places, mask=inside, other=0)
    local_d = tl.arange(0, BLOCK_D)
    group = tl.arange(0, BLOCK_K)
    logit = tl.zeros((BLOCK_V, BLOCK_K), tl.float32)
    norm = tl.zeros((BLOCK_V,), tl.float32)
    for d in range(0, D, BLOCK_D):
        cols = d + local_d
        mask = inside[:, None] & (cols < D)[None, :]
        c = tl.load(weight + rows[:, None] * stride_weight + cols[None, :], mask=mask, other=0.0)
        in_group = (cols < D)[:, None] & (group < K)[None, :]
        token = tl.load(typical + group[None, :].to(tl.int64) * D + cols[:, None], mask=in_group, other=0.0)
        # Rounded to C's dtype a token would shift logits by 2^-9 of themselves: what is left over goes in as well.
        high = token.to(c.dtype)
        low = (token - high.to(tl.float32)).to(c.dtype)
        logit = tl.dot(c, high, logit, input_precision="ieee")
        logit = tl.dot(c, low, logit, input_precision="ieee")
        wide = c.to(tl.float32)
        norm += tl.sum(wide * wide, axis=1)
    if HAS_BIAS:
        logit += tl.load(bias + rows, mask=inside, other=0.0).to(tl.float32)[:, None]
    logit = tl.where(inside[:, None], logit, float("-inf"))
    top = tl.max(logit, axis=0)
    top = tl.where(top == float("-inf"), 0.0, top)
    q = tl.exp(logit - top[None, :])
    q_sum = tl.sum(q, axis=0)
    q = q / tl.where(q_sum > 0.0, q_sum, 1.0)[None, :]
    wide_group = group.to(tl.int64)
    tl.store(shape + wide_group[None, :] * V + places[:, None], q, mask=inside[:, None] & (group < K)[None, :])
    tl.store(shape_square + group * T + tile, tl.sum(q * q, axis=0), mask=group < K)
    weights = tl.trans(q).to(weight.dtype.element_ty)
    centre_square = tl.zeros((BLOCK_K,), tl.float32)
    for d in range(0, D, BLOCK_D):
        cols = d + local_d
        mask = inside[:, None] & (cols < D)[None, :]
        c = tl.load(weight + rows[:, None] * stride_weight + cols[None, :], mask=mask, other=0.0)
        mean_row = tl.dot(weights, c, input_precision="ieee")
        centre_square += tl.sum(mean_row * mean_row, axis=1)
        out = (wide_group * T + tile)[:, None] * D + cols[None, :]
        tl.store(centre + out, mean_row.to(centre.dtype.element_ty), mask=(group < K)[:, None] & (cols < D)[None, :])
        if SMOOTH:
            tl.store(sums + tile.to(tl.int64) * D + cols, tl.sum(c.to(tl.float32), axis=0), mask=cols < D)
    total = tl.sum(q * norm[:, None], axis=0)
    variance = tl.maximum(total - centre_square, 1e-6 * total)
    tl.store(spread + tile, tl.sum(tl.where(group < K, tl.sqrt(variance), 0.0), axis=0) / K)


def grouped_model(problem: Problem, typical: Tensor, order: Tensor | None, tile_classes: int) -> TailModel:
    """The model of every tile and group, without a softcap. typical (K, D) fp32: a token of each group."""
    C, groups = problem.weight, len(typical)
    (V, D), T = C.shape, cdiv(problem.vocab_size, tile_classes)
    new = lambda *shape, dtype=torch.float32: torch.empty(shape, dtype=dtype, device=C.device)  # noqa: E731
    smooth = problem.label_smoothing > 0
    sums = new(T, D) if smooth else None
    shape, shape_square, centre, spread = new(groups, V), new(groups, T), new(groups, T, D, dtype=C.dtype), new(T)
    grouped_model_kernel[(T,)](
        C, problem.bias, order, typical, shape, shape_square, centre, spread, sums, V, D, T, groups, C.stride(0),
        HAS_BIAS=problem.bias is not None, SMOOTH=smooth, ORDERED=order is not None,
        BLOCK_V=tile_classes, BLOCK_D=BLOCK_D, BLOCK_K=max(16, next_power_of_2(groups)), num_warps=8,
    )  # fmt: skip
    class_sum = None if sums is None else sums.sum(dim=0)
    return TailModel(tile_classes, typical, order, shape, shape_square, centre, spread, class_sum, None, None)


def tail_model(problem: Problem, mean: Tensor, order: Tensor | None, tile_classes: int) -> TailModel:
    """The model of every tile. mean (D,) fp32: the average token; order (V,) int64 or None."""
    C = problem.weight
    (V, D), T = C.shape, cdiv(problem.vocab_size, tile_classes)
    new = lambda *shape, dtype=torch.float32: torch.empty(shape, dtype=dtype, device=C.device)  # noqa: E731
    smooth, has_softcap = problem.label_smoothing > 0, problem.softcap > 0
    sums = new(T, D) if smooth and not has_softcap else None
    flat_shape = new(V) if smooth and has_softcap else None
    flat_centre = new(T, D, dtype=C.dtype) if smooth and has_softcap else None
    shape, shape_square, centre, spread = new(1, V), new(1, T), new(1, T, D, dtype=C.dtype), new(T)
    tail_model_kernel[(T,)](
        C, problem.bias, order, mean, shape, shape_square, centre, spread, sums, flat_shape, flat_centre,
        V, D, C.stride(0), problem.softcap,
        HAS_BIAS=problem.bias is not None, SOFTCAP=has_softcap, SMOOTH=smooth, ORDERED=order is not None,
        BLOCK_V=tile_classes, BLOCK_D=BLOCK_D, STAGES=STAGES, num_warps=WARPS,
    )  # fmt: skip
    class_sum = None if sums is None else sums.sum(dim=0)
    return TailModel(
        tile_classes, mean[None], order, shape, shape_square, centre, spread, class_sum, flat_shape, flat_centre
    )


@triton.jit(do_not_specialize=["N", "V", "ignore_index"])
def token_weights_kernel(
    target,  # (N,) int64
    distance,  # (N,) fp32: squared distance from the mean, unused without DISTANT
    weights,  # (N,) fp32, out: sum to 1, 0 in rows that do not count
    N,
    V,
    ignore_index,
    DISTANT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program, three walks over the tokens: launches cost more here, ahead of the forward, than loops.
    number = tl.zeros((BLOCK,), tl.float32)
    far = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, N, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        y = tl.load(target + rows, mask=rows < N, other=ignore_index)
        counts = (y >= 0) & (y < V) & (y != ignore_index)
        number += counts.to(tl.float32)
        if DISTANT:
            far += tl.where(counts, tl.load(distance + rows, mask=rows < N, other=0.0), 0.0)
    tokens = tl.maximum(tl.sum(number, axis=0), 1.0)
    average = tl.maximum(tl.sum(far, axis=0) / tokens, 1e-30)
    whole = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, N, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        y = tl.load(target + rows, mask=rows < N, other=ignore_index)
        counts = (y >= 0) & (y < V) & (y != ignore_index)
        weight = tl.where(counts, 1.0, 0.0)
        if DISTANT:
            # a tenth of the average distance: no single token at the mean itself takes all of the weight
            near = 1.0 / (tl.load(distance + rows, mask=rows < N, other=0.0) / average + 0.1)
            weight = tl.where(counts, near * near, 0.0)
        whole += weight
        tl.store(weights + rows, weight, mask=rows < N)
    total = tl.maximum(tl.sum(whole, axis=0), 1e-30)
    tl.debug_barrier()  # every thread reads below what others wrote above
    for first in range(0, N, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        tl.store(weights + rows, tl.load(weights + rows, mask=rows < N) / total, mask=rows < N)


def typical_token(problem: Problem) -> Tensor:  # (D,) fp32
    """The mean of the tokens that count, weighted by 1 / distance^4 from their plain mean.

    Tails belong to the tokens with flat distributions, which lie near the mean; a token far out has its mass on a few
    classes, and its tail is small. On trained-like inputs these weights do as well as the tails' true masses.
    """
    E = problem.input
    weights = torch.empty(problem.tokens, dtype=torch.float32, device=E.device)
    distance = None
    for _ in range(2):
        token_weights_kernel[(1,)](
            problem.target, distance, weights, problem.tokens, problem.vocab_size, problem.ignore_index,
            DISTANT=distance is not None, BLOCK=4096, num_warps=16,
        )  # fmt: skip
        mean = column_sum(E, weights)
        distance = squared_distances(E, mean) if distance is None else distance
    return mean


def with_relative_spread(model: TailModel) -> TailModel:
    """The model with every spread over the root of their mean square; at least a thousandth."""
    relative = torch.nn.functional.rms_norm(model.spread, model.spread.shape, eps=1e-30)
    return replace(model, relative_spread=relative.clamp(min=1e-3))
