"""The tail's first-order term: what a token's own direction does to the shape of its tail.

The model gives every token the shape q of a typical token mu. To first order the true one is
    q_v (1 + d_nv - mean of d_n over the tile),     d_nv = z_nv - z_v = C_v . (E_n - mu),
which adds to dE_n
    w_n (E_n - mu) A_t,     A_t = sum_v q_v (C_v - centre_t)(C_v - centre_t)^T,     w_n its tail's mass.
Under a softcap the shape is that of p u, and d_nv has the factor u - 2 s / cap^2, the slope of s + log u.
One matrix A for all tiles, the mean of A_t by their tail mass, does nearly as well as a matrix each, and is a D x D
product away. It is summed over a sample of rows of C drawn by their tail mass, so that its cost does not depend on V.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.linear_cross_entropy.launch import cdiv, next_power_of_2
from kernels.linear_cross_entropy.primitives import capped
from kernels.linear_cross_entropy.problem import Problem
from kernels.linear_cross_entropy.products import add_product
from kernels.linear_cross_entropy.tail.elementwise import weighted_deviation
from kernels.linear_cross_entropy.tail.groups import TokenGroups
from kernels.linear_cross_entropy.tail.model import TailModel

CHUNK_ROWS = 16384  # of the sample at once, which dC has room for: it is not there yet
PROGRAM_ROWS = 16  # of the sample a program: each reads the masses of all tiles once


@triton.jit
def sampled_rows_kernel(
    weight,  # (V, D)
    centre,  # (K, T, D)
    typical,  # (K, D) fp32, unused without SOFTCAP
    order,  # (V,) int64, unused without ORDERED
    shape,  # (K, V) fp32
    cumulated,  # (T, K) fp32: tail mass up to and with this tile and group
    out,  # (rows, D), out: row of C less the centre of its tile, times the root of the softcap's factor
    rows,
    samples,
    first_sample,
    T,
    V,
    D,
    K,
    stride_weight,
    softcap,
    SOFTCAP: tl.constexpr,
    ORDERED: tl.constexpr,
    TILES: tl.constexpr,  # T K, rounded up to a power of two
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PROGRAM_ROWS: tl.constexpr,
):
    # A program owns PROGRAM_ROWS samples: the classes at (k + 1/2) / samples of the tail mass.
    tiles = tl.arange(0, TILES)  # of a group each
    ends = tl.load(cumulated + tiles, mask=tiles < T * K, other=float("inf"))
    whole = tl.load(cumulated + T * K - 1)
    local = tl.arange(0, BLOCK_V)
    local_d = tl.arange(0, BLOCK_D)
    begin_row = tl.program_id(0) * PROGRAM_ROWS
    for row in range(begin_row, tl.minimum(begin_row + PROGRAM_ROWS, rows)):
        point = (first_sample + row + 0.5) / samples * whole
        # which tile and group, then which class in it
        found = tl.minimum(tl.sum((ends <= point).to(tl.int32), axis=0), T * K - 1)
        begin = tl.max(tl.where(tiles < found, ends, 0.0), axis=0)
        end = tl.min(tl.where(tiles >= found, ends, float("inf")), axis=0)
        tile = found // K
        group = (found % K).to(tl.int64)
        q = tl.load(shape + group * V + tile * BLOCK_V + local, mask=tile * BLOCK_V + local < V, other=0.0)
        share = (point - begin) / tl.maximum(end - begin, 1e-37)
        inside = tl.sum((tl.cumsum(q, axis=0) <= share).to(tl.int32), axis=0)
        class_row = tl.minimum(tile * BLOCK_V + tl.minimum(inside, BLOCK_V - 1), V - 1).to(tl.int64)
        if ORDERED:
            class_row = tl.load(order + class_row)
        factor = 1.0
        if SOFTCAP:
            products = tl.zeros((BLOCK_D,), tl.float32)
            for d in range(0, D, BLOCK_D):
                cols = d + local_d
                c = tl.load(weight + class_row * stride_weight + cols, mask=cols < D, other=0.0).to(tl.float32)
                products += c * tl.load(typical + group * D + cols, mask=cols < D, other=0.0)
            s, slope = capped(tl.sum(products, axis=0), softcap, False)
            factor = tl.sqrt(tl.maximum(slope - 2.0 * s / (softcap * softcap), 0.0))
        for d in range(0, D, BLOCK_D):
            cols = d + local_d
            c = tl.load(weight + class_row * stride_weight + cols, mask=cols < D, other=0.0).to(tl.float32)
            c -= tl.load(centre + (group * T + tile) * D + cols, mask=cols < D, other=0.0).to(tl.float32)
            c *= factor
            place = out + (row + tl.zeros((BLOCK_D,), tl.int64)) * D + cols
            tl.store(place, c.to(out.dtype.element_ty), mask=cols < D)


def within_tile_covariance(problem: Problem, model: TailModel, weight: Tensor, samples: int) -> Tensor:
    """(D, D) fp32: the covariance of rows of C about their tile's centres, by tail mass: weight (T, K) >= 0."""
    C = problem.weight
    V, D = C.shape
    cumulated = weight.flatten().cumsum(0)
    covariance = torch.empty(D, D, dtype=torch.float32, device=C.device)
    for first in range(0, samples, CHUNK_ROWS):
        rows = torch.empty(min(CHUNK_ROWS, samples - first), D, dtype=C.dtype, device=C.device)
        sampled_rows_kernel[(cdiv(len(rows), PROGRAM_ROWS),)](
            C, model.centre, model.typical, model.order, model.shape, cumulated, rows, len(rows), samples, first,
            model.tiles, V, D, model.groups, C.stride(0), problem.softcap,
            SOFTCAP=problem.softcap > 0, ORDERED=model.order is not None,
            TILES=next_power_of_2(model.tiles * model.groups), BLOCK_V=model.tile_classes,
            BLOCK_D=min(1024, next_power_of_2(D)), PROGRAM_ROWS=PROGRAM_ROWS, num_warps=4,
        )  # fmt: skip
        add_product(covariance, rows.t(), rows, first=first == 0)
    return covariance


def add_first_order(
    problem: Problem,
    model: TailModel,
    token_mass: Tensor,  # (N,) fp32: w, in units that the dtype of E can hold
    weight: Tensor,  # (T, K) fp32: the tails' masses without their signs, of every tile and group
    groups: TokenGroups | None,
    accumulator: Tensor,  # (N, D) fp32, in and out: dE in the same units
    samples: int,
) -> None:
    E = problem.input
    total = within_tile_covariance(problem, model, weight, samples)
    covariance = torch.mul(total, 1 / samples, out=torch.empty_like(total, dtype=E.dtype))
    add_product(accumulator, weighted_deviation(E, model.typical, token_mass, groups), covariance, first=False)
