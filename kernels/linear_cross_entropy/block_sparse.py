"""Products with a block-sparse dz: only (token block, vocabulary tile) pairs marked active take part.

    dE[tokens] += sum over active tiles t of dz[tokens, t] @ C[t]           one program a tile of dE
    dC[classes] = sum over active blocks b of dz[b, classes].T @ E[b]       one program a tile of dC

A program owns its tile of the result and walks over a list of active partners, so nothing is locked, no
atomics are needed, every element is written once with one rounding, and two runs give the same bits. The
published kernels add into shared bf16 gradients under locks instead: thousands of roundings, in any order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.linear_cross_entropy.config import ProductTile, Tile
from kernels.linear_cross_entropy.launch import cdiv, next_power_of_2
from kernels.linear_cross_entropy.operands import row_major
from kernels.linear_cross_entropy.primitives import add_product, load_tile


@triton.jit(do_not_specialize=["blocks", "tiles"])
def list_active_kernel(
    active,  # (blocks, tiles) int32
    tiles_of_block,  # (blocks, tiles) int32, out: indices of the block's active tiles, ascending
    blocks_of_tile,  # (tiles, blocks) int32, out: indices of the tile's active blocks, ascending
    tile_counts,  # (blocks,) int32, out
    block_counts,  # (tiles,) int32, out
    blocks,
    tiles,
    BLOCK: tl.constexpr,
):
    # A program owns one list: those of the blocks first, then those of the tiles.
    program = tl.program_id(0)
    index = tl.arange(0, BLOCK)
    if program < blocks:
        flags = tl.load(active + program * tiles + index, mask=index < tiles, other=0)
        place = tl.cumsum(flags, axis=0) - 1
        tl.store(tiles_of_block + program * tiles + place, index, mask=flags > 0)
        tl.store(tile_counts + program, tl.sum(flags, axis=0))
    else:
        tile = program - blocks
        flags = tl.load(active + index * tiles + tile, mask=index < blocks, other=0)
        place = tl.cumsum(flags, axis=0) - 1
        tl.store(blocks_of_tile + tile * blocks + place, index, mask=flags > 0)
        tl.store(block_counts + tile, tl.sum(flags, axis=0))


@triton.jit(do_not_specialize=["N", "tiles"])
def input_gradient_kernel(
    dz,  # (N, width)
    weight,  # (width, D)
    tiles_of_block,  # (blocks, tiles) int32
    tile_counts,  # (blocks,) int32
    accumulator,  # (N, D) fp32, in and out
    N,
    width,
    D,
    tiles,
    stride_dz,
    stride_weight,
    FIRST: tl.constexpr,  # nothing in the accumulator yet
    PRECISE: tl.constexpr,
    TMA: tl.constexpr,
    BLOCK_V: tl.constexpr,  # classes of a vocabulary tile
    ROWS: tl.constexpr,  # tokens of a token block
    COLS: tl.constexpr,
    STEP: tl.constexpr,
):
    # A program owns accumulator[ROWS tokens, COLS of D]; tiles of D vary fastest, to share dz through L2.
    column_tiles = tl.cdiv(D, COLS)
    block = tl.program_id(0) // column_tiles
    row = block * ROWS
    col = (tl.program_id(0) % column_tiles) * COLS
    steps: tl.constexpr = BLOCK_V // STEP
    count = tl.load(tile_counts + block)
    if FIRST or count > 0:
        rows = row + tl.arange(0, ROWS)
        cols = col + tl.arange(0, COLS)
        place = accumulator + rows.to(tl.int64)[:, None] * D + cols[None, :]
        mask = (rows < N)[:, None] & (cols < D)[None, :]
        total = tl.zeros((ROWS, COLS), tl.float32)
        if not FIRST:  # before the loop: added afterwards, the old tile and the new would need registers at once
            total = tl.load(place, mask=mask, other=0.0)
        lost = tl.zeros((ROWS, COLS), tl.float32)
        for i in range(count * steps):
            tile = tl.load(tiles_of_block + block * tiles + i // steps)
            v = tile * BLOCK_V + (i % steps) * STEP
            a = load_tile(dz, row, v, N, width, stride_dz, TMA, ROWS, STEP)
            c = load_tile(weight, v, col, width, D, stride_weight, TMA, STEP, COLS)
            total, lost = add_product(total, lost, a, c, PRECISE)
        tl.store(place, total, mask=mask)


@triton.jit(do_not_specialize=["N", "blocks"])
def weight_gradient_kernel(
    dz,  # (N, width)
    input,  # (N, D)
    blocks_of_tile,  # (tiles, blocks) int32
    block_counts,  # (tiles,) int32
    order,  # (width,) int64: row of grad_weight each class goes to, unused without SORTED
    grad_weight,  # (V, D) with SORTED, else (width, D), out
    N,
    width,
    D,
    blocks,
    stride_dz,
    stride_input,
    SORTED: tl.constexpr,
    PRECISE: tl.constexpr,
    TMA: tl.constexpr,
    BLOCK_N: tl.constexpr,  # tokens of a token block
    BLOCK_V: tl.constexpr,  # classes of a vocabulary tile
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    STEP: tl.constexpr,
):
    # A program owns grad_weight[ROWS classes, COLS of D]; tiles of D vary fastest, to share dz through L2.
    column_tiles = tl.cdiv(D, COLS)
    row = (tl.program_id(0) // column_tiles) * ROWS
    col = (tl.program_id(0) % column_tiles) * COLS
    tile = row // BLOCK_V
    steps: tl.constexpr = BLOCK_N // STEP
    total = tl.zeros((ROWS, COLS), tl.float32)
    lost = tl.zeros((ROWS, COLS), tl.float32)
    for i in range(tl.load(block_counts + tile) * steps):
        block = tl.load(blocks_of_tile + tile * blocks + i // steps)
        n = block * BLOCK_N + (i % steps) * STEP
        a = load_tile(dz, n, row, N, width, stride_dz, TMA, STEP, ROWS)
        e = load_tile(input, n, col, N, D, stride_input, TMA, STEP, COLS)
        total, lost = add_product(total, lost, a.T, e, PRECISE)
    rows = row + tl.arange(0, ROWS)
    cols = col + tl.arange(0, COLS)
    inside = rows < width
    places = rows.to(tl.int64)
    if SORTED:
        places = tl.load(order + rows, mask=inside, other=0)
    mask = inside[:, None] & (cols < D)[None, :]
    tl.store(grad_weight + places[:, None] * D + cols[None, :], total.to(grad_weight.dtype.element_ty), mask=mask)


class ActiveLists:
    """For each token block its active tiles, and for each tile its active token blocks."""

    def __init__(self, active: Tensor) -> None:  # (blocks, tiles) int32
        blocks, tiles = active.shape
        new = lambda *shape: torch.empty(shape, dtype=torch.int32, device=active.device)  # noqa: E731
        self.tiles_of_block, self.tile_counts = new(blocks, tiles), new(blocks)
        self.blocks_of_tile, self.block_counts = new(tiles, blocks), new(tiles)
        list_active_kernel[(blocks + tiles,)](
            active, self.tiles_of_block, self.blocks_of_tile, self.tile_counts, self.block_counts,
            blocks, tiles, BLOCK=next_power_of_2(max(blocks, tiles)),
        )  # fmt: skip


def add_input_gradient(
    dz: Tensor,  # (N, width)
    weight: Tensor,  # (width, D)
    lists: ActiveLists,
    accumulator: Tensor,  # (N, D) fp32
    tile: Tile,
    product: ProductTile,
    *,
    first: bool,
) -> None:
    """accumulator += dz @ weight over active tiles; `first` overwrites."""
    (N, width), D = dz.shape, weight.shape[1]
    blocks, tiles = lists.tiles_of_block.shape
    input_gradient_kernel[(blocks * cdiv(D, product.cols),)](
        row_major(dz, (tile.block_n, product.step), product.tma),
        row_major(weight, (product.step, product.cols), product.tma),
        lists.tiles_of_block, lists.tile_counts, accumulator,
        N, width, D, tiles, dz.stride(0), weight.stride(0),
        FIRST=first, PRECISE=dz.dtype == torch.float32, TMA=product.tma, BLOCK_V=tile.block_v,
        ROWS=tile.block_n, COLS=product.cols, STEP=product.step, **product.options,
    )  # fmt: skip


def write_weight_gradient(
    dz: Tensor,  # (N, width)
    input: Tensor,  # (N, D)
    lists: ActiveLists,
    order: Tensor | None,  # (width,)
    grad_weight: Tensor,  # (V, D) with an order, else (width, D)
    tile: Tile,
    product: ProductTile,
) -> None:
    """grad_weight rows = dz.T @ input over active token blocks."""
    (N, width), D = dz.shape, input.shape[1]
    blocks = lists.blocks_of_tile.shape[1]
    weight_gradient_kernel[(cdiv(width, product.rows) * cdiv(D, product.cols),)](
        row_major(dz, (product.step, product.rows), product.tma),
        row_major(input, (product.step, product.cols), product.tma),
        lists.blocks_of_tile, lists.block_counts, order, grad_weight,
        N, width, D, blocks, dz.stride(0), input.stride(0),
        SORTED=order is not None, PRECISE=dz.dtype == torch.float32, TMA=product.tma,
        BLOCK_N=tile.block_n, BLOCK_V=tile.block_v,
        ROWS=product.rows, COLS=product.cols, STEP=product.step, **product.options,
    )  # fmt: skip
