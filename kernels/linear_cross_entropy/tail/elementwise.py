"""Small passes over N x D and S x D matrices, each one kernel where torch would take three and an fp32 copy."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.linear_cross_entropy.launch import cdiv
from kernels.linear_cross_entropy.tail.groups import BLOCK_N as GROUP_ROWS
from kernels.linear_cross_entropy.tail.groups import TokenGroups

BLOCK_ROWS, BLOCK_COLS = 16, 256


@triton.jit(do_not_specialize=["N"])
def weighted_deviation_kernel(
    matrix,  # (N, D)
    mean,  # (K, D) fp32
    group,  # (blocks,) int32: which of them, unused without GROUPED
    weight,  # (N,) fp32
    whole,  # () fp32: sum of the weights, unused without ROOT
    out,  # (N, D), out
    N,
    D,
    stride,
    GROUPED: tl.constexpr,
    ROOT: tl.constexpr,  # the root of a weight's share of the whole takes its place
    GROUP_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    # A program owns a tile of the result: weight_n * (matrix_nd - mean_d).
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(1) * COLS + tl.arange(0, COLS)
    mask = (rows < N)[:, None] & (cols < D)[None, :]
    wide = rows.to(tl.int64)[:, None]
    if GROUPED:
        mean += tl.load(group + tl.program_id(0) * ROWS // GROUP_ROWS).to(tl.int64) * D
    x = tl.load(matrix + wide * stride + cols[None, :], mask=mask, other=0.0).to(tl.float32)
    factor = tl.load(weight + rows, mask=rows < N, other=0.0)
    if ROOT:
        factor = tl.sqrt(factor / tl.maximum(tl.load(whole), 1e-30))
    x = (x - tl.load(mean + cols, mask=cols < D, other=0.0)[None, :]) * factor[:, None]
    tl.store(out + wide * D + cols[None, :], x.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["N"])
def less_outer_product_kernel(
    accumulator,  # (N, D) fp32
    column,  # (N,) fp32
    row,  # (D,) fp32
    out,  # (N, D), out
    N,
    D,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    # A program owns a tile of the result: accumulator_nd - column_n * row_d, rounded once.
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(1) * COLS + tl.arange(0, COLS)
    mask = (rows < N)[:, None] & (cols < D)[None, :]
    place = rows.to(tl.int64)[:, None] * D + cols[None, :]
    x = tl.load(accumulator + place, mask=mask, other=0.0)
    x -= tl.load(column + rows, mask=rows < N)[:, None] * tl.load(row + cols, mask=cols < D, other=0.0)[None, :]
    tl.store(out + place, x.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["N"])
def squared_distance_kernel(matrix, point, out, N, D, stride, ROWS: tl.constexpr, COLS: tl.constexpr):
    # A program owns ROWS rows: out_n = |matrix_n - point|^2.
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros((ROWS, COLS), tl.float32)
    for first in range(0, D, COLS):
        cols = first + tl.arange(0, COLS)
        mask = (rows < N)[:, None] & (cols < D)[None, :]
        x = tl.load(matrix + rows.to(tl.int64)[:, None] * stride + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        x = tl.where(mask, x - tl.load(point + cols, mask=cols < D, other=0.0)[None, :], 0.0)
        total += x * x
    tl.store(out + rows, tl.sum(total, axis=1), mask=rows < N)


@triton.jit(do_not_specialize=["N"])
def row_product_kernel(matrix, vector, out, N, D, stride, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    # A program owns BLOCK_N rows: out_n = sum_d matrix_nd * vector_d in fp32.
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for d in range(0, D, BLOCK_D):
        cols = d + tl.arange(0, BLOCK_D)
        mask = (rows < N)[:, None] & (cols < D)[None, :]
        part = tl.load(matrix + rows.to(tl.int64)[:, None] * stride + cols[None, :], mask=mask, other=0.0)
        total += part.to(tl.float32) * tl.load(vector + cols, mask=cols < D, other=0.0)[None, :]
    tl.store(out + rows, tl.sum(total, axis=1), mask=rows < N)


def squared_distances(matrix: Tensor, point: Tensor) -> Tensor:  # (N, D), (D,) fp32 -> (N,) fp32
    """|matrix_n - point|^2 in fp32."""
    N, D = matrix.shape
    out = torch.empty(N, dtype=torch.float32, device=matrix.device)
    squared_distance_kernel[(cdiv(N, BLOCK_ROWS),)](
        matrix, point, out, N, D, matrix.stride(0), ROWS=BLOCK_ROWS, COLS=BLOCK_COLS, num_warps=4
    )
    return out


def row_product(matrix: Tensor, vector: Tensor) -> Tensor:  # (N, D), (D,) fp32 -> (N,) fp32
    """matrix @ vector in fp32, without an fp32 copy of the matrix."""
    N, D = matrix.shape
    out = torch.empty(N, dtype=torch.float32, device=matrix.device)
    row_product_kernel[(cdiv(N, 32),)](
        matrix, vector, out, N, D, matrix.stride(0), BLOCK_N=32, BLOCK_D=128, num_warps=4
    )
    return out


def _grid(rows: int, cols: int) -> tuple[int, int]:
    return cdiv(rows, BLOCK_ROWS), cdiv(cols, BLOCK_COLS)


def weighted_deviation(
    matrix: Tensor, mean: Tensor, weight: Tensor, groups: TokenGroups | None, *, whole: Tensor | None = None
) -> Tensor:
    """weight_n (matrix_n - mean of n's group) (N, D) in the matrix's dtype, rounded once. mean (K, D) fp32.

    With the sum of the weights in `whole` (), the root of weight_n / whole takes the place of weight_n.
    """
    N, D = matrix.shape
    out = torch.empty((N, D), dtype=matrix.dtype, device=matrix.device)
    weighted_deviation_kernel[_grid(N, D)](
        matrix,
        mean,
        None if groups is None else groups.of_block,
        weight,
        whole,
        out,
        N,
        D,
        matrix.stride(0),
        GROUPED=groups is not None,
        ROOT=whole is not None,
        GROUP_ROWS=GROUP_ROWS,
        ROWS=BLOCK_ROWS,
        COLS=BLOCK_COLS,
        num_warps=4,
    )
    return out


def less_outer_product(accumulator: Tensor, column: Tensor, row: Tensor, dtype: torch.dtype) -> Tensor:
    """accumulator (N, D) fp32 - outer(column (N,), row (D,)), rounded once to dtype."""
    N, D = accumulator.shape
    out = torch.empty((N, D), dtype=dtype, device=accumulator.device)
    less_outer_product_kernel[_grid(N, D)](
        accumulator, column, row, out, N, D, ROWS=BLOCK_ROWS, COLS=BLOCK_COLS, num_warps=4
    )
    return out
