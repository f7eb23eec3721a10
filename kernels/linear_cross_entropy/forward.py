"""Forward: lse_n = log sum_v exp(z_nv), the target logit and sum_v z_nv, in one pass over the vocabulary.

    loss_n = (1 - beta) * (lse_n - z_ny) + beta * (lse_n - sum_v z_nv / V)            seeds: paper, Eq. 15

Not materialised: the logits, and any per-tile partial. A program keeps the running log-sum-exp of its 128
tokens in registers while it walks over its share of the vocabulary, so what is written is one partial per
token and vocabulary group: 8 bytes (12 with smoothing) * groups * N, at most PARTIALS_BYTES, or 2 groups. There are no
locks and no atomics: the same inputs give the same bits.

Numerics: products accumulate in fp32, everything after them is fp32. The target logit is taken from the
same tile as the lse, so the loss cannot go negative by rounding the two differently. Smoothing costs one
addition a logit, hidden behind the exponential; a separate pass for mean_v C_v would read C once more.
"""

import torch
import triton
import triton.language as tl

from kernels.linear_cross_entropy.config import PARTIALS_BYTES, Tile, choose_tile, multiprocessors, vocabulary_groups
from kernels.linear_cross_entropy.launch import cdiv
from kernels.linear_cross_entropy.operands import row_major
from kernels.linear_cross_entropy.primitives import accurate_exp, capped, logits_tile, logsumexp_update
from kernels.linear_cross_entropy.problem import Problem, Statistics

COMBINE_BLOCK = 256  # tokens a program of the combine kernel: N / 256 programs, each a few loads a group


@triton.jit(do_not_specialize=["N", "tiles_per_group", "ignore_index"])
def forward_kernel(
    input,  # (N, D)
    weight,  # (V, D)
    bias,  # (V,), unused without HAS_BIAS
    target,  # (N,) int64
    maximum_parts,  # (groups, N) fp32, out
    total_parts,  # (groups, N) fp32, out: sum of exp(logit - maximum)
    sum_parts,  # (groups, N) fp32, out: sum of the logits; unused without SMOOTH
    target_logit,  # (N,) fp32, out: untouched where the target is no class
    N,
    V,
    D,
    stride_input,
    stride_weight,
    tiles_per_group,
    ignore_index,
    softcap,
    one,  # 1.0
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SMOOTH: tl.constexpr,
    PRECISE: tl.constexpr,
    TMA: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # A program owns one block of tokens and one group of consecutive vocabulary tiles. Token blocks vary
    # fastest, so programs that run together read the same rows of weight, from L2.
    token_blocks = tl.cdiv(N, BLOCK_N)
    row = (tl.program_id(0) % token_blocks) * BLOCK_N
    group = tl.program_id(0) // token_blocks
    first = group * tiles_per_group
    last = tl.minimum(first + tiles_per_group, tl.cdiv(V, BLOCK_V))

    rows = row + tl.arange(0, BLOCK_N)
    in_batch = rows < N
    y = tl.load(target + rows, mask=in_batch, other=ignore_index)
    # A block of ignored rows alone walks over nothing: what is written for them is not read.
    last = tl.where(tl.max((y != ignore_index).to(tl.int32), axis=0) > 0, last, first)
    local = tl.arange(0, BLOCK_V)
    maximum = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    lost = tl.zeros((BLOCK_N,), tl.float32)
    logit_sum = tl.zeros((BLOCK_N,), tl.float32)
    y_logit = tl.zeros((BLOCK_N,), tl.float32)

    # Flattened into one loop, the copies of the next tile are in flight during the epilogue of this one.
    for tile in tl.range(first, last, flatten=TMA):
        col = tile * BLOCK_V
        z = logits_tile(
            input, weight, bias, row, col, N, V, D, stride_input, stride_weight,
            HAS_BIAS, PRECISE, TMA, BLOCK_N, BLOCK_V, BLOCK_D,
        )  # fmt: skip
        if SOFTCAP:
            z, _ = capped(z, softcap, PRECISE)
        else:
            # Exact, and one instruction a logit; but it moves the logits to registers of their own. Where the branches
            # below read the accumulator itself, ptxas waits for every tensor-core instruction of the main loop.
            z = z * one
        if SMOOTH:
            logit_sum += tl.sum(z, axis=1)  # before the mask below: padding columns hold 0 here, not -inf
        y_local = (y - col).to(tl.int32)
        hits = tl.max(((y_local >= 0) & (y_local < BLOCK_V)).to(tl.int32), axis=0)
        if hits > 0:  # few tiles hold a target of the block; comparing in all of them costs 1 % of the tile
            y_logit += tl.sum(tl.where(local[None, :] == y_local[:, None], z, 0.0), axis=1)
        if col + BLOCK_V > V:
            z = tl.where((local < V - col)[None, :], z, float("-inf"))
        maximum, total, lost = logsumexp_update(maximum, total, lost, z, PRECISE)

    part = group * N + rows
    tl.store(maximum_parts + part, maximum, mask=in_batch)
    tl.store(total_parts + part, total, mask=in_batch)
    if SMOOTH:
        tl.store(sum_parts + part, logit_sum, mask=in_batch)
    mine = (y >= first * BLOCK_V) & (y < tl.minimum(last * BLOCK_V, V))
    tl.store(target_logit + rows, y_logit, mask=in_batch & mine)


@triton.jit(do_not_specialize=["N", "groups"])
def combine_kernel(
    maximum_parts,  # (groups, N) fp32
    total_parts,  # (groups, N) fp32
    sum_parts,  # (groups, N) fp32, unused without SMOOTH
    target_logit,  # (N,) fp32
    target,  # (N,) int64
    loss,  # (N,) fp32, out, as are the following
    lse,  # (N,)
    nll,  # (N,)
    maximum,  # (N,)
    total,  # (N,)
    N,
    V,
    groups,
    ignore_index,
    label_smoothing,
    SMOOTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # A program owns BLOCK tokens and merges their partials in group order.
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    in_batch = rows < N
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    for group in range(groups):
        top = tl.maximum(top, tl.load(maximum_parts + group * N + rows, mask=in_batch, other=0.0))
    mass = tl.zeros((BLOCK,), tl.float32)
    logit_sum = tl.zeros((BLOCK,), tl.float32)
    for group in range(groups):
        part = tl.load(total_parts + group * N + rows, mask=in_batch, other=1.0)
        mass += part * accurate_exp(tl.load(maximum_parts + group * N + rows, mask=in_batch, other=0.0) - top)
        if SMOOTH:
            logit_sum += tl.load(sum_parts + group * N + rows, mask=in_batch, other=0.0)
    # The largest logit contributes 1, so lse >= every logit and a loss without smoothing is never negative. (where,
    # not maximum, which would swallow a nan.)
    mass = tl.where(mass < 1.0, 1.0, mass)
    log_mass = tl.log(mass)

    y = tl.load(target + rows, mask=in_batch, other=0)
    outside = (y < 0) | (y >= V)
    # Not lse - z_y: where the target is the top class, top - z_y is exactly 0 and log_mass alone remains.
    row_nll = (top - tl.load(target_logit + rows, mask=in_batch, other=0.0)) + log_mass
    row_nll = tl.where(outside, float("nan"), row_nll)
    row_loss = row_nll
    if SMOOTH:
        row_loss = (1.0 - label_smoothing) * row_nll + label_smoothing * ((top - logit_sum / V) + log_mass)
    ignored = y == ignore_index
    tl.store(loss + rows, tl.where(ignored, 0.0, row_loss), mask=in_batch)
    tl.store(nll + rows, tl.where(ignored, 0.0, row_nll), mask=in_batch)
    tl.store(lse + rows, tl.where(ignored, 0.0, top + log_mass), mask=in_batch)
    tl.store(maximum + rows, top, mask=in_batch)
    tl.store(total + rows, mass, mask=in_batch)


def statistics(problem: Problem, tile: Tile | None = None, groups: int | None = None) -> Statistics:
    """Loss, lse and nll of every token. `tile` and `groups` override the choice (tests, sweeps)."""
    tile = tile or choose_tile(problem)
    N, V, D = problem.tokens, problem.vocab_size, problem.hidden_size
    smooth = problem.label_smoothing > 0
    new = lambda *shape: torch.empty(shape, dtype=torch.float32, device=problem.input.device)  # noqa: E731
    result = Statistics(*(new(N) for _ in range(5)))
    token_blocks, tiles = cdiv(N, tile.block_n), cdiv(V, tile.block_v)
    if groups is None:
        most = max(2, PARTIALS_BYTES // (12 * N))
        groups = vocabulary_groups(token_blocks, tiles, multiprocessors(problem.input.device), most)
    tiles_per_group = cdiv(tiles, groups)
    groups = cdiv(tiles, tiles_per_group)  # no empty last group
    maximum_parts, total_parts = new(groups, N), new(groups, N)
    sum_parts = new(groups, N) if smooth else None
    target_logit = new(N)
    forward_kernel[(token_blocks * groups,)](
        row_major(problem.input, (tile.block_n, tile.block_d), tile.tma),
        row_major(problem.weight, (tile.block_v, tile.block_d), tile.tma),
        problem.bias, problem.target, maximum_parts, total_parts, sum_parts, target_logit,
        N, V, D, problem.input.stride(0), problem.weight.stride(0), tiles_per_group, problem.ignore_index,
        problem.softcap, 1.0,
        HAS_BIAS=problem.bias is not None, SOFTCAP=problem.softcap > 0, SMOOTH=smooth,
        PRECISE=problem.input.dtype == torch.float32, TMA=tile.tma, **tile.blocks, **tile.options,
    )  # fmt: skip
    combine_kernel[(cdiv(N, COMBINE_BLOCK),)](
        maximum_parts, total_parts, sum_parts, target_logit, problem.target, *result.tensors(),
        N, V, groups, problem.ignore_index, problem.label_smoothing, SMOOTH=smooth, BLOCK=COMBINE_BLOCK,
    )  # fmt: skip
    return result
