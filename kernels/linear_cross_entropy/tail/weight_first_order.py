"""The tail's first-order term in dC: what the spread of the tokens does to the shape of a class's tail.

To first order a token's shape is q_v (1 + d_nv - mean of d_n over the tile), d_nv = C_v . (E_n - mu), which adds
    q_v sum over inactive n of (g_n + l_n) m_nt E_n (E_n - mu)^T (C_v - centre_t)
to dC_v. One matrix for all tiles, the tokens' covariance K about mu by the mass of their tails, takes the sum's place:
    q_v M_t K (C_v - centre_t),     M_t = sum over inactive n of (g_n + l_n) m_nt
and K is taken for sigma^2 I plus what it has beyond that in R directions, two products of V D R. They are found by one
Nystroem sketch: with X the weighted deviations (K = X^T X), S = X Omega for a random Omega,
    W W^T = X^T S (S^T S)^-1 S^T X,   never more than K,   sigma^2 = (trace K - |W|^2) / (D - R).
Where these directions have hardly more than others, K is taken for (trace K / D) I, and the products are not made.

Where d is not small the true sum grows slower than K. With d's variance in a tile,
    s_t = sum_v q_v (C_v - centre_t) K (C_v - centre_t)^T,
M_t is taken times (1 + (s_t / 2)^2)^(-1/2): about what is left of the term in the true sum, for s from 0.2 to 20.
Sum over v of dC_v stays what it is, for q_v (C_v - centre_t) sums to 0 in a tile.
"""

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.linear_cross_entropy.problem import Problem
from kernels.linear_cross_entropy.products import add_product
from kernels.linear_cross_entropy.tail.elementwise import weighted_deviation
from kernels.linear_cross_entropy.tail.host_copy import HostCopy
from kernels.linear_cross_entropy.tail.model import TailModel
from kernels.linear_cross_entropy.tail.side_stream import keep

MOST_DIRECTIONS = 32
LEAST_EXPLAINED = 0.1  # of K's trace, beyond sigma^2, in R directions
BLOCK_D, WARPS = 64, 8  # of directions_kernel; with half as many warps it runs out of registers
DAMPING = tl.constexpr(2.0)  # s_t from which on the term grows no more


@triton.jit
def inverse_factor(matrix, R: tl.constexpr):
    """L^-1 and trace of a symmetric (R, R) matrix = L L^T, a little above its own rounding: 0 has a factor too."""
    i = tl.arange(0, R)
    diagonal = i[:, None] == i[None, :]
    trace = tl.sum(tl.sum(tl.where(diagonal, matrix, 0.0), axis=1), axis=0)
    left = tl.where(diagonal, matrix + (trace * 1e-5 + 1e-30), matrix)
    # Elimination turns [matrix | I] into [U | unit lower], whose rows over sqrt(pivot) are L^-1.
    right = diagonal.to(tl.float32)
    for k in range(R):
        row = tl.sum(tl.where(i[:, None] == k, left, 0.0), axis=0)
        unit = tl.sum(tl.where(i[:, None] == k, right, 0.0), axis=0)
        pivot = tl.sum(tl.where(i == k, row, 0.0), axis=0)
        column = tl.sum(tl.where(i[None, :] == k, left, 0.0), axis=1)
        factor = tl.where(i > k, column / pivot, 0.0)
        left -= factor[:, None] * row[None, :]
        right -= factor[:, None] * unit[None, :]
    pivots = tl.sum(tl.where(diagonal, left, 0.0), axis=1)
    return right * tl.rsqrt(tl.maximum(pivots, 1e-30))[:, None], trace


@triton.jit
def directions_kernel(
    square,  # (R, R) fp32: S^T S
    seen,  # (D, R) fp32: X^T S
    norm,  # () fp32: |X|
    directions,  # (D, R), out: W = X^T S L^-T, S^T S = L L^T
    folded,  # (D, R), out: W F
    fold,  # (R, R) fp32, out: F = I - sigma^2 (W^T W)^-1
    spread,  # (3,) fp32, out: sigma^2, trace K / D, share of the trace that R directions have beyond sigma^2
    D,
    R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # One program. A library's factor, solves, products and casts of matrices so small are twenty launches, each of
    # which takes the host longer than this kernel takes for a block of D.
    i = tl.arange(0, R)
    place = i[:, None] * R + i[None, :]
    inverse, _ = inverse_factor(tl.load(square + place), R)
    whitening = tl.trans(inverse)
    gram = tl.zeros((R, R), tl.float32)
    for d in range(0, D, BLOCK_D):
        cols = d + tl.arange(0, BLOCK_D)
        part = tl.load(seen + cols[:, None] * R + i[None, :], mask=(cols < D)[:, None], other=0.0)
        w = tl.dot(part, whitening, input_precision="ieee")
        gram = tl.dot(tl.trans(w), w, gram, input_precision="ieee")
        out = directions + cols[:, None] * R + i[None, :]
        tl.store(out, w.to(directions.dtype.element_ty), mask=(cols < D)[:, None])
    inverse, trace = inverse_factor(gram, R)
    root = tl.load(norm)
    whole = root * root
    variance = tl.maximum(whole - trace, 0.0) / tl.maximum(D - R, 1)  # no more dimensions than directions
    beyond = tl.where(i[:, None] == i[None, :], 1.0, 0.0)
    beyond -= variance * tl.dot(tl.trans(inverse), inverse, input_precision="ieee")
    tl.store(fold + place, beyond)
    tl.store(spread, variance)
    tl.store(spread + 1, whole / D)
    tl.store(spread + 2, (trace - R * variance) / tl.maximum(whole, 1e-30))
    whitening = tl.dot(whitening, beyond, input_precision="ieee")
    for d in range(0, D, BLOCK_D):
        cols = d + tl.arange(0, BLOCK_D)
        part = tl.load(seen + cols[:, None] * R + i[None, :], mask=(cols < D)[:, None], other=0.0)
        out = folded + cols[:, None] * R + i[None, :]
        w = tl.dot(part, whitening, input_precision="ieee")
        tl.store(out, w.to(folded.dtype.element_ty), mask=(cols < D)[:, None])


@dataclass(frozen=True)
class Covariance:
    """K = variance I + directions folded^T, of the tokens by the mass of their tails."""

    variance: Tensor  # () fp32: sigma^2, or trace K / D without directions
    directions: Tensor | None  # (D, R) in E's dtype: W
    folded: Tensor | None  # (D, R) in E's dtype: W F, so that sigma^2 is not there twice
    fold: Tensor | None  # (R, R) fp32: F = I - sigma^2 (W^T W)^-1


@dataclass(frozen=True)
class CovarianceSketch:
    """K before the host knows whether its directions are worth their products. May be made beside other work."""

    spread: Tensor  # (3,) fp32: as directions_kernel has it
    copied: HostCopy
    directions: Tensor  # as in Covariance
    folded: Tensor
    fold: Tensor

    def covariance(self) -> Covariance:
        """Waits for the device."""
        explained = float(self.copied.wait()[2])
        keep(self.spread, self.directions, self.folded, self.fold)
        if explained < LEAST_EXPLAINED:
            return Covariance(self.spread[1], None, None, None)
        return Covariance(self.spread[0], self.directions, self.folded, self.fold)


@dataclass(frozen=True)
class WeightTerm:
    """The term of one backward, for the kernel that writes dC."""

    covariance: Covariance
    classes: Tensor | None  # (V, R) in C's dtype: C directions, by class; None without directions
    centres: Tensor | None  # (T, R) fp32: centre directions
    masses: Tensor  # (T,) fp32: M, damped

    @property
    def rank(self) -> int:
        """R, 0 without directions."""
        return 0 if self.classes is None else self.classes.shape[1]


def most_directions(hidden_size: int) -> int:
    """R: what a tensor core's product takes."""
    return MOST_DIRECTIONS if hidden_size >= 2 * MOST_DIRECTIONS else 16


def sketch_covariance(problem: Problem, model: TailModel, tail: Tensor) -> CovarianceSketch:
    """K of the tokens that `tail` (T, N), in any unit and of either sign, weighs. Waits for nothing."""
    E, D = problem.input, problem.hidden_size
    R = most_directions(D)
    weight = torch.linalg.vector_norm(tail, ord=1, dim=0, dtype=torch.float32)
    X = weighted_deviation(E, model.typical, weight, None, whole=weight.sum())
    sketch = X @ _omega(D, R, E.dtype, E.device)
    # Of the sketch as it was rounded: W W^T is then a projection of K, whatever the rounding.
    square, seen, fold, spread = (E.new_empty(s, dtype=torch.float32) for s in ((R, R), (D, R), (R, R), (3,)))
    directions, folded = E.new_empty(D, R), E.new_empty(D, R)
    add_product(square, sketch.t(), sketch, first=True)
    add_product(seen, X.t(), sketch, first=True)
    norm = torch.linalg.vector_norm(X, dtype=torch.float32)
    outputs = (directions, folded, fold, spread)
    directions_kernel[(1,)](square, seen, norm, *outputs, D, R=R, BLOCK_D=BLOCK_D, num_warps=WARPS)
    return CovarianceSketch(spread, HostCopy(spread), directions, folded, fold)


@triton.jit
def damp_kernel(
    masses,  # (T,) fp32: M
    spread,  # (T,) fp32
    variance,  # () fp32
    shape,  # (V,) fp32, unused where RANK is 0, as are the following
    order,  # (V,) int64, unused without ORDERED
    classes,  # (V, RANK), by class
    centres,  # (T, RANK) fp32
    fold,  # (RANK, RANK) fp32
    out,  # (T,) fp32
    V,
    RANK: tl.constexpr,
    ORDERED: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    tile = tl.program_id(0)
    distance = tl.load(spread + tile)
    turned = tl.load(variance) * distance * distance
    if RANK > 0:
        places = tile * BLOCK_V + tl.arange(0, BLOCK_V)
        rank = tl.arange(0, RANK)
        q = tl.load(shape + places, mask=places < V, other=0.0)
        rows = places.to(tl.int64)
        if ORDERED:
            rows = tl.load(order + places, mask=places < V, other=0)
        p = tl.load(classes + rows[:, None] * RANK + rank[None, :], mask=(places < V)[:, None], other=0.0)
        p = p.to(tl.float32) - tl.load(centres + tile * RANK + rank)[None, :]
        folded = tl.dot(p, tl.load(fold + rank[:, None] * RANK + rank[None, :]), input_precision="tf32")
        turned += tl.sum(q * tl.sum(p * folded, axis=1), axis=0)
    turned = tl.maximum(turned, 0.0) / DAMPING
    tl.store(out + tile, tl.load(masses + tile) / tl.sqrt(1.0 + turned * turned))


def weight_term(
    problem: Problem,
    model: TailModel,
    covariance: Covariance,
    masses: Tensor,  # (T,) fp32: M
) -> WeightTerm:
    """Of one group of tokens. V R numbers of scratch."""
    classes, centres, R = None, None, 0
    if covariance.directions is not None:
        R = covariance.directions.shape[1]
        classes = problem.weight @ covariance.directions
        centres = torch.empty(model.tiles, R, dtype=torch.float32, device=problem.input.device)
        add_product(centres, model.centre[0], covariance.directions, first=True)
    damped = torch.empty(model.tiles, dtype=torch.float32, device=masses.device)
    damp_kernel[(model.tiles,)](
        masses, model.spread, covariance.variance, model.shape, model.order, classes, centres, covariance.fold, damped,
        problem.vocab_size,
        RANK=R, ORDERED=model.order is not None, BLOCK_V=model.tile_classes, num_warps=4,
    )  # fmt: skip
    return WeightTerm(covariance, classes, centres, damped)


def term_bytes(problem: Problem, covariance: Covariance | None) -> int:
    """What `weight_term` keeps of every class."""
    found = None if covariance is None else covariance.directions
    return 0 if found is None else problem.vocab_size * found.shape[1] * found.element_size()


def rows_of_term(
    problem: Problem,
    model: TailModel,
    covariance: Covariance,
    masses: Tensor,  # (T,) fp32: M, damped
    places: Tensor,  # (n,) int64, of classes in the model's order
) -> Tensor:  # (n, D) fp32
    """What the term adds to some rows of dC, in plain torch."""
    tile = places // model.tile_classes
    classes = places if model.order is None else model.order[places]
    deviation = problem.weight[classes].float() - model.centre[0, tile].float()
    turned = deviation * covariance.variance
    if covariance.directions is not None and covariance.folded is not None:
        turned += deviation @ covariance.folded.float() @ covariance.directions.float().t()
    return (model.shape[0, places] * masses[tile])[:, None] * turned


@functools.lru_cache(maxsize=8)
def _omega(hidden_size: int, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = torch.Generator(device).manual_seed(0)
    drawn = torch.randn(hidden_size, count, generator=generator, dtype=torch.float32, device=device)
    return (drawn / hidden_size**0.5).to(dtype)
