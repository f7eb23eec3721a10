"""sum_n w_n * M_nd over the rows of a matrix, in fp32, without an fp32 copy of it.

`matrix.sum(dim=0, dtype=torch.float32)` stages its partial sums in a buffer of 1.1 MiB for each 1024 rows: 281 MiB for
a (256000, 2304) head, a quarter of dC. Here they take 4 bytes a column for each of about PARTS row ranges.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.linear_cross_entropy.launch import cdiv

ROWS, COLS = 16, 256  # 32 fp32 sums a thread of 4 warps, 512 bytes of a bf16 row
PARTS = 1024  # programs: enough to stream at memory speed on any GPU; fixed, so that all of them sum alike


@triton.jit(do_not_specialize=["num_rows", "rows_per_part"])
def column_sum_kernel(
    matrix,  # (num_rows, num_cols)
    weights,  # (num_rows,) fp32, unused without WEIGHTED
    parts,  # (num_parts, num_cols) fp32, out
    num_rows,
    num_cols,
    stride,
    rows_per_part,
    WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    # A program owns COLS columns of one range of rows; column blocks vary fastest.
    column_blocks = tl.cdiv(num_cols, COLS)
    part = tl.program_id(0) // column_blocks
    cols = (tl.program_id(0) % column_blocks) * COLS + tl.arange(0, COLS)
    last = tl.minimum((part + 1) * rows_per_part, num_rows)
    total = tl.zeros((ROWS, COLS), tl.float32)
    for start in range(part * rows_per_part, last, ROWS):
        rows = start + tl.arange(0, ROWS)
        mask = (rows < last)[:, None] & (cols < num_cols)[None, :]
        offsets = rows.to(tl.int64)[:, None] * stride + cols[None, :]
        tile = tl.load(matrix + offsets, mask=mask, other=0.0).to(tl.float32)
        if WEIGHTED:
            tile *= tl.load(weights + rows, mask=rows < last, other=0.0)[:, None]
        total += tile
    tl.store(parts + part * num_cols + cols, tl.sum(total, axis=0), mask=cols < num_cols)


def column_sum(matrix: Tensor, weights: Tensor | None = None) -> Tensor:  # (rows, cols), (rows,) -> (cols,) fp32
    """The sum of the rows, each times its weight."""
    num_rows, num_cols = matrix.shape
    column_blocks = cdiv(num_cols, COLS)
    rows_per_part = cdiv(cdiv(num_rows, max(1, PARTS // column_blocks)), ROWS) * ROWS
    num_parts = cdiv(num_rows, rows_per_part)
    parts = torch.empty((num_parts, num_cols), dtype=torch.float32, device=matrix.device)
    column_sum_kernel[(num_parts * column_blocks,)](
        matrix, weights, parts, num_rows, num_cols, matrix.stride(0), rows_per_part,
        WEIGHTED=weights is not None, ROWS=ROWS, COLS=COLS, num_warps=4,
    )  # fmt: skip
    return parts.sum(dim=0)
