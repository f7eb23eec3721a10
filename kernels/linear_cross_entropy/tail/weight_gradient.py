"""dC and db: what active pairs give, and the tail, entering where the result is written, once and rounded once.

    dC_v = (dz.T @ E[tokens])_v + q_v S_t - share,      S_t = sum over inactive n of (g_n + l_n) m_nt E_n
share being the smoothing's rank-one part, (beta / V) sum_n g_n E_n; under a softcap, instead, flat_v F_t with
F_t = (beta / V) sum_n g_n (sum of ds/dz in the tile) E_n. Its part of active pairs is in their dz. With the first-order
term (weight_first_order.py), dC_v also gets q_v M_t K (C_v - centre_t), M_t the tile's modelled mass, damped.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from kernels.linear_cross_entropy.launch import cdiv, next_power_of_2
from kernels.linear_cross_entropy.problem import Problem
from kernels.linear_cross_entropy.tail.blocks import Blocks, GatherOptions
from kernels.linear_cross_entropy.tail.model import TailModel
from kernels.linear_cross_entropy.tail.weight_first_order import WeightTerm


@triton.jit(do_not_specialize=["first_tile", "tiles", "done"])
def write_weight_gradient_kernel(  # noqa: PLR0912, PLR0915 - every branch is decided when it is compiled
    dz,  # (blocks * ROWS, BLOCK_V)
    input,  # (N, D)
    order,  # (V,) int64, unused without ORDERED
    tokens,  # (blocks * ROWS,) int32
    first_block,  # (T + 2,) int32
    shape,  # (K, V) fp32
    pulls,  # (T, K, D) fp32: S
    shift,  # (D,) fp32: share
    flat_shape,  # (V,) fp32, unused without FLAT
    flat_pulls,  # (T, D) fp32: F, unused without FLAT
    masses,  # (T, K) fp32: sum over inactive n of (g_n + l_n) m_nt; unused without HAS_BIAS
    bias_shift,  # () fp32: (beta / V) sum_n g_n; unused without HAS_BIAS
    flat_masses,  # (T,) fp32, unused without FLAT and HAS_BIAS
    weight,  # (V, D), unused without FIRST_ORDER, as are the following
    centre,  # (T, D)
    variance,  # () fp32
    term_masses,  # (T,) fp32
    turned,  # (V, RANK), by class: C directions; unused where RANK is 0, as are the following
    turned_centre,  # (T, RANK) fp32: centre directions
    folded,  # (D, RANK)
    grad_weight,  # (V, D), out; unused without HAS_WEIGHT
    grad_bias,  # (V,), out; unused without HAS_BIAS
    V,
    D,
    K,
    stride_input,
    stride_weight,
    first_tile,
    tiles,
    done,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    FLAT: tl.constexpr,
    GROUPED: tl.constexpr,
    FIRST_ORDER: tl.constexpr,  # of one group and without a softcap
    RANK: tl.constexpr,  # 0: without directions
    ORDERED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CLASSES: tl.constexpr,  # of a program: a part of the tile
    COLS: tl.constexpr,
    STEP: tl.constexpr,  # pairs at a time: ROWS or a part of them
):
    # A program owns dC[CLASSES of a tile, COLS of D] and walks over the tile's blocks. Columns vary slowest: the tokens
    # of a tile are anywhere in E, and COLS of E fit into L2.
    parts: tl.constexpr = BLOCK_V // CLASSES
    column = tl.program_id(0) // (tiles * parts)
    index = tl.program_id(0) % (tiles * parts)
    tile = first_tile + index // parts
    v = (index % parts) * CLASSES + tl.arange(0, CLASSES)
    cols = column * COLS + tl.arange(0, COLS)
    begin = (tl.load(first_block + tile) - done) * ROWS
    end = (tl.load(first_block + tile + 1) - done) * ROWS
    if FIRST_ORDER and HAS_WEIGHT:
        # What the products below are added to: after them it would not fit into registers beside their sum.
        place = tile * BLOCK_V + v
        row = place.to(tl.int64)
        if ORDERED:
            row = tl.load(order + place, mask=place < V, other=0)
        c = tl.load(weight + row[:, None] * stride_weight + cols[None, :],
                    mask=(place < V)[:, None] & (cols < D)[None, :], other=0.0).to(tl.float32)  # fmt: skip
        c -= tl.load(centre + tile.to(tl.int64) * D + cols, mask=cols < D, other=0.0).to(tl.float32)[None, :]
        total = c * tl.load(variance)
        if RANK > 0:
            rank = tl.arange(0, RANK)
            p = tl.load(turned + row[:, None] * RANK + rank[None, :], mask=(place < V)[:, None], other=0.0)
            p = p.to(tl.float32) - tl.load(turned_centre + tile * RANK + rank)[None, :]
            w = tl.load(folded + cols[None, :] * RANK + rank[:, None], mask=(cols < D)[None, :], other=0.0)
            total = tl.dot(p.to(turned.dtype.element_ty), w, total, input_precision="ieee")
        factor = tl.load(shape + place, mask=place < V, other=0.0) * tl.load(term_masses + tile)
        total *= factor[:, None]
    else:
        total = tl.zeros((CLASSES, COLS), tl.float32)
    bias_total = tl.zeros((CLASSES,), tl.float32)
    for first in range(begin, end, STEP):
        local = (first + tl.arange(0, STEP)).to(tl.int64)
        token = tl.load(tokens + local)
        rows = tl.where(token >= 0, token, 0).to(tl.int64)
        a = tl.load(dz + local[None, :] * BLOCK_V + v[:, None])
        if HAS_WEIGHT:
            e = tl.load(input + rows[:, None] * stride_input + cols[None, :],
                        mask=(token >= 0)[:, None] & (cols < D)[None, :], other=0.0)  # fmt: skip
            total = tl.dot(a, e, total, input_precision="ieee")
        if HAS_BIAS:
            bias_total += tl.sum(a.to(tl.float32), axis=1)
    places = tile * BLOCK_V + v
    inside = places < V
    if GROUPED:
        group = tl.arange(0, BLOCK_K)
        in_group = group < K
        shapes = tl.load(shape + group[None, :].to(tl.int64) * V + places[:, None],
                         mask=inside[:, None] & in_group[None, :], other=0.0)  # fmt: skip
    else:
        q = tl.load(shape + places, mask=inside, other=0.0)
    if FLAT:
        flat = tl.load(flat_shape + places, mask=inside, other=0.0)
    classes = places.to(tl.int64)
    if ORDERED:
        classes = tl.load(order + places, mask=inside, other=0)
    if HAS_WEIGHT:
        in_row = cols < D
        out = tile.to(tl.int64) * D + cols
        if GROUPED:
            pull = tl.load(pulls + (tile * K + group).to(tl.int64)[:, None] * D + cols[None, :],
                           mask=in_group[:, None] & in_row[None, :], other=0.0)  # fmt: skip
            total = tl.dot(shapes, pull, total, input_precision="tf32x3")
        else:
            total += q[:, None] * tl.load(pulls + out, mask=in_row, other=0.0)[None, :]
        if FLAT:
            total -= flat[:, None] * tl.load(flat_pulls + out, mask=in_row, other=0.0)[None, :]
        else:
            total -= tl.load(shift + cols, mask=in_row, other=0.0)[None, :]
        tl.store(grad_weight + classes[:, None] * D + cols[None, :], total.to(grad_weight.dtype.element_ty),
                 mask=inside[:, None] & in_row[None, :])  # fmt: skip
    if HAS_BIAS:  # noqa: SIM102 - one is known to the compiler, the other is not
        if column == 0:
            if GROUPED:
                mass = tl.load(masses + tile * K + group, mask=in_group, other=0.0)
                bias_total += tl.sum(shapes * mass[None, :], axis=1)
            else:
                bias_total += q * tl.load(masses + tile)
            if FLAT:
                bias_total -= flat * tl.load(flat_masses + tile)
            else:
                bias_total -= tl.load(bias_shift)
            tl.store(grad_bias + classes, bias_total.to(grad_bias.dtype.element_ty), mask=inside)


@dataclass(frozen=True)
class Pulls:
    """What the tail adds to dC and db, of every tile and of every class."""

    tile: Tensor  # (T, K, D) fp32: S
    shift: Tensor  # (D,) fp32: subtracted from every row of dC
    flat: Tensor | None  # (T, D) fp32: F
    mass: Tensor  # (T, K) fp32: likewise for db
    bias_shift: Tensor | None  # () fp32; None where nobody asks for db
    flat_mass: Tensor | None  # (T,) fp32


def write_weight_gradient(
    problem: Problem,
    model: TailModel,
    blocks: Blocks,
    dz: Tensor,
    pulls: Pulls,
    grad_weight: Tensor | None,  # (V, D), out
    grad_bias: Tensor | None,  # (V,), out
    options: GatherOptions,
    term: WeightTerm | None = None,
) -> None:
    """dC and db of the blocks' tiles, tail included."""
    D = problem.hidden_size
    classes = min(options.weight_classes, model.tile_classes)
    parts = model.tile_classes // classes
    columns = cdiv(D, options.weight_cols) if grad_weight is not None else 1
    term_arguments: tuple[Tensor | None, ...] = (None,) * 7
    if term is not None and grad_weight is not None:
        term_arguments = (
            problem.weight, model.centre, term.covariance.variance, term.masses,
            term.classes, term.centres, term.covariance.folded,
        )  # fmt: skip
    write_weight_gradient_kernel[(blocks.tiles * parts * columns,)](
        dz, problem.input, model.order, blocks.tokens, blocks.first_block, model.shape,
        pulls.tile, pulls.shift, model.flat_shape, pulls.flat, pulls.mass, pulls.bias_shift, pulls.flat_mass,
        *term_arguments,
        grad_weight, grad_bias,
        problem.vocab_size, D, model.groups, problem.input.stride(0), problem.weight.stride(0),
        blocks.first_tile, blocks.tiles, blocks.done,
        HAS_WEIGHT=grad_weight is not None, HAS_BIAS=grad_bias is not None, FLAT=pulls.flat is not None,
        GROUPED=model.groups > 1, BLOCK_K=max(16, next_power_of_2(model.groups)),
        FIRST_ORDER=term_arguments[0] is not None, RANK=0 if term is None else term.rank,
        ORDERED=model.order is not None, ROWS=options.rows, BLOCK_V=model.tile_classes,
        CLASSES=classes, COLS=options.weight_cols if grad_weight is not None else next_power_of_2(D),
        STEP=options.weight_step,
        num_warps=options.weight_warps, num_stages=options.weight_stages,
    )  # fmt: skip
