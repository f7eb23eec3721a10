"""Constants, each with its reason, and the choice of tile for a problem and a device."""

from dataclasses import dataclass

import torch

from kernels.linear_cross_entropy.problem import Problem

# dz scratch that is not part of the gradients themselves. Wide slices amortise the read-modify-write of the
# fp32 dE; beyond 64 MiB the gain is under 1 % and the peak passes 1.15 times the gradients (Gemma-2 head).
SPARE_BYTES = 64 * 2**20

# Per-token partials of the forward: three fp32 numbers a vocabulary group. The forward promises <= 2 MiB.
PARTIALS_BYTES = 1 * 2**20

# A token subset is packed only when it drops at least this share of the tokens; below it, the packed copy
# of the input (and its memory) costs more than the rows it saves.
PACK_FRACTION = 1 / 8

# Tokens of a block that belongs to one group (tail/groups.py): every logits tile's rows but fp32's.
GROUP_BLOCK = 128

# Fewer tokens than this have too few active pairs a tile to gather.
TAIL_TOKENS = 256

# FLOPs of one product of N x D by V x D below which "auto" computes all of them: the model of the tail costs the host
# some thirty launches, which so short products do not hide (measured: docs/kernel-notes.md).
LEAST_MODELLED_FLOPS = 6e11

# Interpreter runs have no multiprocessors to ask for; a few programs keep its loops persistent.
INTERPRETER_PROGRAMS = 4


@dataclass(frozen=True)
class Tile:
    """Shape and launch options of a logits tile: block_n tokens by block_v classes, block_d of D a step."""

    block_n: int
    block_v: int
    block_d: int
    warps: int
    stages: int
    tma: bool

    @property
    def blocks(self) -> dict[str, int]:
        return {"BLOCK_N": self.block_n, "BLOCK_V": self.block_v, "BLOCK_D": self.block_d}

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.warps, "num_stages": self.stages}


# One accumulator of 128 x 256 fp32 fills half the registers of two warpgroups; 3 stages of 48 KiB plus the
# 64 KiB dz tile fill shared memory. 128 x 128 with two programs an SM re-reads more through L2.
HOPPER_TILE = Tile(128, 256, 64, warps=8, stages=3, tma=True)
HOPPER_SHARED_BYTES = 227 * 1024
# mma.sync keeps operands in registers as well: 128 x 256 spills, 128 x 128 does not.
POINTER_TILE = Tile(128, 128, 32, warps=8, stages=4, tma=False)
# fp32 runs on the FMA units (TF32 would not be fp32): operands come through registers, so tiles are small.
FLOAT32_TILE = Tile(64, 64, 16, warps=8, stages=3, tma=False)


@dataclass(frozen=True)
class ProductTile:
    """Shape and launch options of a block-sparse product: rows by cols of the result, step of the sum."""

    rows: int  # classes, in dC; the rows of dE are the tile's token block
    cols: int
    step: int
    warps: int
    stages: int
    tma: bool

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.warps, "num_stages": self.stages}


# Stages are shared with the indirection (which tile is next?): 5 leave three buffers, as the logits tile has.
HOPPER_PRODUCT = ProductTile(128, 256, 64, warps=8, stages=5, tma=True)
POINTER_PRODUCT = ProductTile(128, 128, 32, warps=8, stages=5, tma=False)
FLOAT32_PRODUCT = ProductTile(64, 64, 32, warps=4, stages=3, tma=False)


def multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETER_PROGRAMS
    return torch.cuda.get_device_properties(device).multi_processor_count


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured, when the host can read nothing; False while torch.compile traces."""
    if device.type != "cuda" or torch.compiler.is_compiling():
        return False
    return torch.cuda.is_current_stream_capturing()


def choose_tile(problem: Problem) -> Tile:
    """TMA tiles where the GPU can run them and every row starts on 16 bytes, else pointer tiles."""
    if problem.input.dtype == torch.float32:
        return FLOAT32_TILE
    operands = (problem.input, problem.weight)
    aligned = all(t.data_ptr() % 16 == 0 and t.stride(0) * t.element_size() % 16 == 0 for t in operands)
    return HOPPER_TILE if aligned and _runs_hopper_tiles(problem.input.device) else POINTER_TILE


def _runs_hopper_tiles(device: torch.device) -> bool:
    """Whether the GPU has the copy engine and the shared memory: consumer Blackwell has one without the other."""
    if device.type != "cuda":
        return False
    properties = torch.cuda.get_device_properties(device)
    return properties.major >= 9 and properties.shared_memory_per_block_optin >= HOPPER_SHARED_BYTES


def tail_tile_classes(
    input: torch.Tensor,  # (N, D)
    weight: torch.Tensor,  # (V, D)
    dtype: torch.dtype | None = None,  # autocast's, where the operands have not been cast yet
    *,
    choose: bool = False,
) -> int:
    """Classes of a vocabulary tile where gradients can be tail-corrected; 0 where they cannot.

    `choose`: nor where computing all of them is as fast, as gradient="auto" asks.

    Not on a CPU, nor for fp32 operands, whose rounding is far below any model's error; nor while a CUDA graph is being
    captured, for the host must read how many pairs are active; nor for so few tokens or classes that one tile is
    most of them.
    """
    dtype = dtype or input.dtype
    if choose and not worth_modelling(input.shape[0], weight.shape[0], input.shape[1]):
        return 0
    if not input.is_cuda or dtype not in (torch.bfloat16, torch.float16) or capturing(input.device):
        return 0
    aligned = all(t.stride(0) * dtype.itemsize % 16 == 0 for t in (input, weight))
    classes = (HOPPER_TILE if aligned and _runs_hopper_tiles(input.device) else POINTER_TILE).block_v
    return classes if weight.shape[0] >= 8 * classes and input.shape[0] >= TAIL_TOKENS else 0


def worth_modelling(tokens: int, vocab_size: int, hidden_size: int) -> bool:
    """Whether the products of a problem take longer than the launches that modelling some of them away costs."""
    return 2 * tokens * vocab_size * hidden_size >= LEAST_MODELLED_FLOPS


def tail_tile(tile_classes: int) -> Tile:
    """The logits tile with as many classes."""
    return next(tile for tile in (HOPPER_TILE, POINTER_TILE) if tile.block_v == tile_classes)


def choose_product_tile(problem: Problem) -> ProductTile:
    """The block-sparse products read the same matrices as the logits tile, and dz, which is aligned."""
    tile = choose_tile(problem)
    return {HOPPER_TILE: HOPPER_PRODUCT, POINTER_TILE: POINTER_PRODUCT, FLOAT32_TILE: FLOAT32_PRODUCT}[tile]


def vocabulary_groups(token_blocks: int, tiles: int, programs: int, most: int) -> int:
    """In how many groups to split the vocabulary so that token_blocks * groups programs fill the GPU.

    The time of a choice is (waves of programs) * (tiles a program); the smallest number of groups within
    1 % of the best wins, for each group adds a partial and restarts the pipeline.
    """
    choices = range(1, max(1, min(tiles, most, 4 * programs)) + 1)
    cost = {g: -(-token_blocks * g // programs) * -(-tiles // g) for g in choices}
    best = min(cost.values())
    return next(g for g in choices if cost[g] <= 1.01 * best)
