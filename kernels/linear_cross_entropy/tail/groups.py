"""Groups of tokens, each with shapes of its own: tokens alike have tails alike.

One shape a tile for all tokens is the mean of what tokens do; on the head of a trained model, tokens differ. With the
tokens in K groups around given centres, tile t has K shapes, and the token blocks of a group use theirs. That costs
K / N of a GEMM for the model; the tail's products stay as large as they are, each block's with its group's centres:
    dE_n += sum_t M_tn centre_(g(n) t)             S_gt = sum over n in g of M_tn E_n,   dC_v += sum_g q_gv S_gt
The batch is computed in the order of the groups. A group is whole blocks of BLOCK_N tokens: a block that holds the end
of one and the start of another belongs to that of its middle token, and what does not fit there has a large residual.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.linear_cross_entropy.config import GROUP_BLOCK as BLOCK_N
from kernels.linear_cross_entropy.launch import cdiv
from kernels.linear_cross_entropy.problem import Problem


@dataclass(frozen=True)
class TokenGroups:
    """Of a batch whose tokens are in the order of their groups."""

    of_block: Tensor  # (blocks,) int32, not decreasing
    count: int  # K

    def first_block(self) -> Tensor:  # (K + 1,) int32
        """Where the blocks of every group begin."""
        numbers = torch.arange(self.count + 1, dtype=torch.int32, device=self.of_block.device)
        return torch.searchsorted(self.of_block, numbers, out_int32=True)


def group_tokens(input: Tensor, centres: Tensor) -> tuple[Tensor, TokenGroups]:
    """The order of the tokens by the centre nearest to them, (N,) int64, and their groups. centres (K, D) fp32."""
    K = len(centres)
    near = input @ centres.to(input.dtype).t() - (0.5 * centres.square().sum(1)).to(input.dtype)
    label, order = near.argmax(dim=1).sort(stable=True)
    middle = torch.arange(BLOCK_N // 2, input.shape[0] + BLOCK_N // 2, BLOCK_N, device=input.device)
    return order, TokenGroups(label[middle.clamp(max=input.shape[0] - 1)].int(), K)


@triton.jit(do_not_specialize=["N", "V", "ignore_index"])
def group_mean_kernel(
    input,  # (N, D)
    target,  # (N,) int64
    first_block,  # (K + 1,) int32
    mean,  # (K, D) fp32, out
    N,
    V,
    D,
    ignore_index,
    stride_input,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # A program owns one group and BLOCK_D of D.
    group = tl.program_id(0)
    cols = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_D,), tl.float32)
    number = tl.zeros((BLOCK_N,), tl.float32)
    for block in range(tl.load(first_block + group), tl.load(first_block + group + 1)):
        rows = block * BLOCK_N + tl.arange(0, BLOCK_N)
        y = tl.load(target + rows, mask=rows < N, other=ignore_index)
        counts = (y >= 0) & (y < V) & (y != ignore_index) & (rows < N)
        mask = counts[:, None] & (cols < D)[None, :]
        e = tl.load(input + rows.to(tl.int64)[:, None] * stride_input + cols[None, :], mask=mask, other=0.0)
        total += tl.sum(e.to(tl.float32), axis=0)
        number += counts.to(tl.float32)
    tl.store(mean + group.to(tl.int64) * D + cols, total / tl.maximum(tl.sum(number, axis=0), 1.0), mask=cols < D)


def group_means(problem: Problem, groups: TokenGroups) -> Tensor:  # (K, D) fp32
    """The mean of the tokens of each group that count; 0 for a group without any."""
    N, D = problem.input.shape
    mean = torch.empty(groups.count, D, dtype=torch.float32, device=problem.input.device)
    group_mean_kernel[(groups.count, cdiv(D, 64))](
        problem.input, problem.target, groups.first_block(), mean, N, problem.vocab_size, D, problem.ignore_index,
        problem.input.stride(0), BLOCK_N=BLOCK_N, BLOCK_D=64, num_warps=4,
    )  # fmt: skip
    return mean


@triton.jit(do_not_specialize=["N", "T"])
def grouped_input_kernel(
    tail,  # (T, N)
    centre,  # (K, T, D)
    group,  # (blocks,) int32
    accumulator,  # (N, D) fp32, out
    N,
    T,
    D,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    # A program owns accumulator[a block of tokens, BLOCK_D of D]; columns vary slowest, to share centres through L2.
    blocks = tl.cdiv(N, BLOCK_N)
    block = tl.program_id(0) % blocks
    cols = (tl.program_id(0) // blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    rows = block * BLOCK_N + tl.arange(0, BLOCK_N)
    base = tl.load(group + block).to(tl.int64) * T
    total = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for first in range(0, T, BLOCK_T):
        tiles = (first + tl.arange(0, BLOCK_T)).to(tl.int64)
        m = tl.load(
            tail + tiles[None, :] * N + rows[:, None], mask=(rows < N)[:, None] & (tiles < T)[None, :], other=0.0
        )
        c = tl.load(centre + (base + tiles)[:, None] * D + cols[None, :],
                    mask=(tiles < T)[:, None] & (cols < D)[None, :], other=0.0)  # fmt: skip
        total = tl.dot(m, c, total, input_precision="ieee")
    mask = (rows < N)[:, None] & (cols < D)[None, :]
    tl.store(accumulator + rows.to(tl.int64)[:, None] * D + cols[None, :], total, mask=mask)


@triton.jit(do_not_specialize=["N", "T"])
def grouped_pull_kernel(
    tail,  # (T, N)
    input,  # (N, D)
    first_block,  # (K + 1,) int32
    pull,  # (T, K, D) fp32, out
    mass,  # (T, K) fp32, out
    weight,  # (T, K) fp32, out
    N,
    T,
    D,
    K,
    stride_input,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    # A program owns pull[BLOCK_T tiles, one group, BLOCK_D of D] and walks over the group's blocks.
    column_tiles = tl.cdiv(D, BLOCK_D)
    column = tl.program_id(0) % column_tiles
    index = tl.program_id(0) // column_tiles
    group = index % K
    tiles = ((index // K) * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
    cols = column * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    sums = tl.zeros((BLOCK_T,), tl.float32)
    weights = tl.zeros((BLOCK_T,), tl.float32)
    for block in range(tl.load(first_block + group), tl.load(first_block + group + 1)):
        rows = block * BLOCK_N + tl.arange(0, BLOCK_N)
        m = tl.load(
            tail + tiles[:, None] * N + rows[None, :], mask=(tiles < T)[:, None] & (rows < N)[None, :], other=0.0
        )
        e = tl.load(input + rows.to(tl.int64)[:, None] * stride_input + cols[None, :],
                    mask=(rows < N)[:, None] & (cols < D)[None, :], other=0.0)  # fmt: skip
        total = tl.dot(m, e, total, input_precision="ieee")
        wide = m.to(tl.float32)
        sums += tl.sum(wide, axis=1)
        weights += tl.sum(tl.abs(wide), axis=1)
    place = tiles * K + group
    tl.store(pull + place[:, None] * D + cols[None, :], total, mask=(tiles < T)[:, None] & (cols < D)[None, :])
    if column == 0:
        tl.store(mass + place, sums, mask=tiles < T)
        tl.store(weight + place, weights, mask=tiles < T)


def grouped_input(tail: Tensor, centre: Tensor, groups: TokenGroups) -> Tensor:  # (N, D) fp32
    """tail (T, N)^T times the centres (K, T, D) of each block's group."""
    (T, N), D = tail.shape, centre.shape[-1]
    accumulator = torch.empty(N, D, dtype=torch.float32, device=tail.device)
    grouped_input_kernel[(cdiv(N, BLOCK_N) * cdiv(D, 128),)](
        tail, centre, groups.of_block, accumulator, N, T, D,
        BLOCK_N=BLOCK_N, BLOCK_D=128, BLOCK_T=64, num_warps=8, num_stages=3,
    )  # fmt: skip
    return accumulator


def grouped_pull(tail: Tensor, input: Tensor, groups: TokenGroups) -> tuple[Tensor, Tensor, Tensor]:
    """Of every tile and group: tail (T, N) times input (N, D), (T, K, D); sums of tail and of its absolute values."""
    (T, N), D, K = tail.shape, input.shape[1], groups.count
    pull = torch.empty(T, K, D, dtype=torch.float32, device=tail.device)
    mass, weight = (torch.empty(T, K, dtype=torch.float32, device=tail.device) for _ in range(2))
    grouped_pull_kernel[(cdiv(T, 128) * K * cdiv(D, 128),)](
        tail, input, groups.first_block(), pull, mass, weight, N, T, D, K, input.stride(0),
        BLOCK_N=BLOCK_N, BLOCK_D=128, BLOCK_T=128, num_warps=8, num_stages=2,
    )  # fmt: skip
    return pull, mass, weight
