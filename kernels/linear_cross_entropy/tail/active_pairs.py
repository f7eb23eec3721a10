"""The exact part: active pairs, gathered per tile into blocks of ROWS tokens as an MoE layer gathers its experts'.

    dz[pairs of t]  = logit gradient of the pair's 256 classes       recomputed, (rows, 256) in the operands' dtype
    dE[tokens]     += dz @ C_t                                       fp32 atomics: a token is in several tiles
    dC_t            = dz.T @ E[tokens] + tail of the tile            written once, one rounding: weight_gradient.py
A tile's list of tokens is padded to whole blocks, whose last rows are masked.
"""

import triton
import triton.language as tl
from torch import Tensor

from kernels.linear_cross_entropy.launch import cdiv
from kernels.linear_cross_entropy.primitives import capped, scaled_maximum, shifted_exp
from kernels.linear_cross_entropy.problem import Problem, Statistics
from kernels.linear_cross_entropy.tail.blocks import Blocks, GatherOptions
from kernels.linear_cross_entropy.tail.model import TailModel
from kernels.linear_cross_entropy.tail.upstream import Upstream


@triton.jit
def write_columns(
    z,  # (rows, COLS) fp32: logits of the tile's classes from `first` on, before bias and softcap
    first, bias, order, dz, out, tile, V, y, real, g, top, e_scale, softcap, keep, share,
    HAS_BIAS: tl.constexpr, SOFTCAP: tl.constexpr, ORDERED: tl.constexpr, BLOCK_V: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """dz of the columns; per row: out, its place, y, its target in the tile, g, and p = shifted_exp(z, top) e_scale."""
    local = first + tl.arange(0, COLS)
    places = tile * BLOCK_V + local
    inside = places < V
    if HAS_BIAS:
        classes = places.to(tl.int64)
        if ORDERED:
            classes = tl.load(order + places, mask=inside, other=0)
        z += tl.load(bias + classes, mask=inside, other=0.0).to(tl.float32)[None, :]
    if SOFTCAP:
        z, _ = capped(z, softcap, False)
    p = shifted_exp(z, top, False) * e_scale[:, None]
    d_logit = tl.where(local[None, :] == y[:, None], p - (g * keep)[:, None], p)
    if SOFTCAP:
        slope = 1.0 - z * z * (1.0 / (softcap * softcap))  # as the forward has it
        d_logit = (d_logit - (g * share)[:, None]) * slope
    d_logit = tl.where(real[:, None] & inside[None, :], d_logit, 0.0)
    tl.store(dz + out[:, None] * BLOCK_V + local[None, :], d_logit.to(dz.dtype.element_ty))


@triton.jit
def gathered_logit_gradient_kernel(
    input,  # (N, D)
    weight,  # (V, D)
    bias,  # (V,), unused without HAS_BIAS
    order,  # (V,) int64, unused without ORDERED
    target,  # (N,) int64: positions in the vocabulary order
    maximum,  # (N,) fp32
    total,  # (N,) fp32
    grad_loss,  # (N,) fp32: g
    p_scale,  # (N,) fp32: g + l
    tokens,  # (blocks * ROWS,) int32
    tile_of_block,  # (blocks,) int32
    dz,  # (blocks * ROWS, BLOCK_V), out
    V,
    D,
    stride_input,
    stride_weight,
    softcap,
    keep,  # 1 - beta
    share,  # beta / V under a softcap, else 0: the smoothing is then of rank one and elsewhere
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ORDERED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # A program owns one block of pairs. Blocks of a tile are neighbours and share its rows of C through L2.
    block = tl.program_id(0)
    tile = tl.load(tile_of_block + block)
    local = tl.arange(0, BLOCK_V)
    places = tile * BLOCK_V + local
    inside = places < V
    classes = places.to(tl.int64)
    if ORDERED:
        classes = tl.load(order + places, mask=inside, other=0)
    token = tl.load(tokens + block * ROWS + tl.arange(0, ROWS))
    real = token >= 0
    rows = tl.where(real, token, 0).to(tl.int64)
    z = tl.zeros((ROWS, BLOCK_V), tl.float32)
    for d in range(0, D, BLOCK_D):
        cols = d + tl.arange(0, BLOCK_D)
        e = tl.load(input + rows[:, None] * stride_input + cols[None, :],
                    mask=real[:, None] & (cols < D)[None, :], other=0.0)  # fmt: skip
        c = tl.load(weight + classes[None, :] * stride_weight + cols[:, None],
                    mask=inside[None, :] & (cols < D)[:, None], other=0.0)  # fmt: skip
        z = tl.dot(e, c, z, input_precision="ieee")
    g = tl.load(grad_loss + rows, mask=real, other=0.0)
    scale = tl.load(p_scale + rows, mask=real, other=0.0)
    top, correction = scaled_maximum(tl.load(maximum + rows, mask=real, other=0.0), False)
    e_scale = scale / tl.load(total + rows, mask=real, other=1.0) * correction
    top = tl.where(scale == 0.0, float("inf"), top)
    e_scale = tl.where(scale == 0.0, 0.0, e_scale)
    y = (tl.load(target + rows, mask=real, other=-1) - tile * BLOCK_V).to(tl.int32)
    out = (block * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    if SOFTCAP:
        # ds/dz beside the logits does not fit into the registers: Triton 3.6 put a kilobyte of it on the stack.
        HALF: tl.constexpr = BLOCK_V // 2
        left, right = tl.split(tl.permute(tl.reshape(z, (ROWS, 2, HALF)), (0, 2, 1)))
        write_columns(left, 0, bias, order, dz, out, tile, V, y, real, g, top, e_scale, softcap, keep, share,
                      HAS_BIAS, SOFTCAP, ORDERED, BLOCK_V, HALF)  # fmt: skip
        write_columns(right, HALF, bias, order, dz, out, tile, V, y, real, g, top, e_scale, softcap, keep, share,
                      HAS_BIAS, SOFTCAP, ORDERED, BLOCK_V, HALF)  # fmt: skip
    else:
        write_columns(z, 0, bias, order, dz, out, tile, V, y, real, g, top, e_scale, softcap, keep, share,
                      HAS_BIAS, SOFTCAP, ORDERED, BLOCK_V, BLOCK_V)  # fmt: skip


@triton.jit(do_not_specialize=["blocks"])
def scatter_input_gradient_kernel(
    dz,  # (blocks * ROWS, BLOCK_V)
    weight,  # (V, D)
    order,  # (V,) int64, unused without ORDERED
    tokens,  # (blocks * ROWS,) int32
    tile_of_block,  # (blocks,) int32
    accumulator,  # (N, D) fp32, in and out
    blocks,
    V,
    D,
    stride_weight,
    ORDERED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_V: tl.constexpr,
    COLS: tl.constexpr,
    STEP: tl.constexpr,
):
    # A program owns one block of pairs and COLS of D. Columns vary slowest: dE in fp32 does not fit into L2, COLS of it
    # do, and so does the dz of a slice, which every column reads.
    block = tl.program_id(0) % blocks
    cols = (tl.program_id(0) // blocks) * COLS + tl.arange(0, COLS)
    tile = tl.load(tile_of_block + block)
    local = (block * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    total = tl.zeros((ROWS, COLS), tl.float32)
    for step in range(0, BLOCK_V, STEP):
        v = step + tl.arange(0, STEP)
        places = tile * BLOCK_V + v
        inside = places < V
        classes = places.to(tl.int64)
        if ORDERED:
            classes = tl.load(order + places, mask=inside, other=0)
        a = tl.load(dz + local[:, None] * BLOCK_V + v[None, :])
        c = tl.load(weight + classes[:, None] * stride_weight + cols[None, :],
                    mask=inside[:, None] & (cols < D)[None, :], other=0.0)  # fmt: skip
        total = tl.dot(a, c, total, input_precision="ieee")
    token = tl.load(tokens + local)
    rows = tl.where(token >= 0, token, 0).to(tl.int64)
    mask = (token >= 0)[:, None] & (cols < D)[None, :]
    tl.atomic_add(accumulator + rows[:, None] * D + cols[None, :], total, mask=mask, sem="relaxed")


def write_logit_gradient(
    problem: Problem,
    statistics: Statistics,
    model: TailModel,
    target: Tensor,  # (N,) positions
    given: Upstream,
    blocks: Blocks,
    dz: Tensor,  # (blocks * ROWS, tile_classes), out
    options: GatherOptions,
) -> None:
    V = problem.vocab_size
    gathered_logit_gradient_kernel[(blocks.count,)](
        problem.input, problem.weight, problem.bias, model.order, target, statistics.maximum, statistics.total,
        given.loss, given.p_scale, blocks.tokens, blocks.tile_of_block, dz,
        V, problem.hidden_size, problem.input.stride(0), problem.weight.stride(0), problem.softcap,
        1.0 - problem.label_smoothing, problem.label_smoothing / V if problem.softcap > 0 else 0.0,
        HAS_BIAS=problem.bias is not None, SOFTCAP=problem.softcap > 0, ORDERED=model.order is not None,
        ROWS=options.rows, BLOCK_V=model.tile_classes, BLOCK_D=options.logit_step,
        num_warps=options.warps, num_stages=options.logit_stages,
    )  # fmt: skip


def scatter_input_gradient(
    problem: Problem, model: TailModel, blocks: Blocks, dz: Tensor, accumulator: Tensor, options: GatherOptions
) -> None:
    """accumulator (N, D) fp32 += dz @ C over the pairs."""
    D = problem.hidden_size
    scatter_input_gradient_kernel[(blocks.count * cdiv(D, options.input_cols),)](
        dz, problem.weight, model.order, blocks.tokens, blocks.tile_of_block, accumulator,
        blocks.count, problem.vocab_size, D, problem.weight.stride(0),
        ORDERED=model.order is not None, ROWS=options.rows, BLOCK_V=model.tile_classes,
        COLS=options.input_cols, STEP=options.input_step,
        num_warps=options.warps, num_stages=options.input_stages,
    )  # fmt: skip
