"""How active pairs are cut into blocks for the gathered products, and with which launch options."""

from bisect import bisect_right
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class GatherOptions:
    """Launch options of the three products over gathered pairs."""

    rows: int  # tokens of a block
    warps: int  # of the two products whose tile has `rows` rows
    logit_step: int = 64
    logit_stages: int = 2
    input_cols: int = 128
    input_step: int = 64
    input_stages: int = 3
    weight_classes: int = 128
    weight_cols: int = 256
    weight_step: int = 64
    weight_warps: int = 8
    weight_stages: int = 5  # two of them go into the tokens' indices, which the rows of E wait for


# Padding costs half a block a tile; small blocks read C more often. Many tokens make long lists.
FEW_TOKENS = GatherOptions(rows=64, warps=4)
MANY_TOKENS = GatherOptions(rows=128, warps=8, logit_stages=3)


def gather_options(tokens: int) -> GatherOptions:
    """Blocks of 128 tokens from 16384 tokens on, where a tile's list has hundreds of them, else of 64."""
    return MANY_TOKENS if tokens >= 16384 else FEW_TOKENS


@dataclass(frozen=True)
class Blocks:
    """Blocks of active pairs of some tiles, in order."""

    tokens: Tensor  # (blocks * ROWS,) int32, -1 in padding
    tile_of_block: Tensor  # (blocks,) int32: counted over the whole vocabulary
    first_block: Tensor  # (T + 2,) int32: where the blocks of every tile of the vocabulary begin
    done: int  # blocks before these
    first_tile: int
    tiles: int
    count: int


def plan_blocks(first_block: list[int], most: int) -> list[tuple[int, int]]:
    """Ranges of tiles with at most `most` blocks together; at least one tile each. first_block: T + 1 running sums."""
    ranges, start, tiles = [], 0, len(first_block) - 1
    while start < tiles:
        stop = bisect_right(first_block, first_block[start] + most, start + 1) - 1
        ranges.append((start, max(stop, start + 1)))
        start = ranges[-1][1]
    return ranges
