"""torch.library operators of the tail-corrected gradient: a forward that remembers tiles, a backward that reads them.

As in linear_cross_entropy::forward and ::backward, losses and upstream gradients are per token. What the forward keeps
has fixed shapes whether or not ignored rows were packed away, so that torch.compile knows them: T * N numbers a
statistic, of which the first T * kept are in use. Statistics that a case has none of are tensors of no elements.
"""

# ruff: noqa: ARG001 - an operator's implementation, fake and autograd formula take what its schema says

from typing import Any

import torch
from torch import Tensor

from kernels.linear_cross_entropy.config import GROUP_BLOCK as BLOCK_N
from kernels.linear_cross_entropy.operator import operator
from kernels.linear_cross_entropy.operators import per_token
from kernels.linear_cross_entropy.problem import Needs, Problem, Statistics
from kernels.linear_cross_entropy.tail.method import TailMethod
from kernels.linear_cross_entropy.tail.report import REPORT_LENGTH

OPERANDS = "Tensor input, Tensor weight, Tensor? bias, Tensor target, Tensor? order, Tensor? centres"
SETTINGS = (
    "float label_smoothing, int ignore_index, float softcap, bool pack, int tile_classes, "
    "float tolerance, bool choose, bool tail, bool first_order, bool certify"
)
NEEDS = "bool need_input, bool need_weight, bool need_bias"
# The host reads how many pairs are active: a compiled model leaves these calls out of its CUDA graphs.
TAGS = (torch.Tag.cudagraph_unsafe,)
KEPT = (
    "tile_lse", "residual", "mass_slope", "mean_slope", "position", "permutation", "of_block",
    "typical", "shape", "shape_square", "centre", "spread", "relative_spread",
    "class_sum", "flat_shape", "flat_centre",
)  # fmt: skip


@operator(
    "linear_cross_entropy::tail_forward",
    f"({OPERANDS}, Tensor? report, {SETTINGS}) -> (Tensor loss, Tensor lse, Tensor nll, "
    f"Tensor maximum, Tensor total, Tensor kept, {', '.join(f'Tensor {name}' for name in KEPT)})",
    tags=TAGS,
)
def tail_forward(
    input: Tensor,  # (N, D)
    weight: Tensor,  # (V, D)
    bias: Tensor | None,  # (V,)
    target: Tensor,  # (N,)
    order: Tensor | None,  # (V,)
    centres: Tensor | None,  # (K, D) fp32
    report: Tensor | None,  # fp64 on the host, for the backward to fill; None where nobody asks
    label_smoothing: float,
    ignore_index: int,
    softcap: float,
    pack: bool,
    tile_classes: int,
    tolerance: float,  # this and what follows is the backward's
    choose: bool,
    tail: bool,
    first_order: bool,
    certify: bool,
) -> tuple[Tensor, ...]:
    """The Statistics, each (N,) fp32, the count of packed rows (-1: all), and what the backward needs of the tiles."""
    from kernels.linear_cross_entropy.tail import forward  # noqa: PLC0415 - imports triton

    problem = Problem(input, weight, bias, target, label_smoothing, ignore_index, softcap)
    statistics, kept, remembered = forward.remember(problem, pack, order, centres, tile_classes)
    return *statistics.tensors(), torch.tensor(-1 if kept is None else kept), *remembered


@tail_forward.register_fake
def _(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    order: Tensor | None,
    centres: Tensor | None,
    report: Tensor | None,
    label_smoothing: float,
    ignore_index: int,
    softcap: float,
    pack: bool,
    tile_classes: int,
    *_: Any,
) -> tuple[Tensor, ...]:
    (N, D), V = input.shape, weight.shape[0]
    T = (V + tile_classes - 1) // tile_classes
    K = 1 if centres is None else centres.shape[0]
    capped, smooth = softcap > 0, label_smoothing > 0

    def wide(*shape: int) -> Tensor:
        return input.new_empty(shape, dtype=torch.float32)

    def half(exists: bool) -> Tensor:
        return input.new_empty(T * N if exists else 0, dtype=torch.bfloat16)

    return (
        *(wide(N) for _ in range(5)),
        torch.empty((), dtype=torch.int64, device="cpu"),
        wide(T * N),
        half(True),
        half(capped),
        half(capped and smooth),
        input.new_empty(0 if order is None else N, dtype=torch.int64),
        input.new_empty(0 if centres is None else N, dtype=torch.int64),
        input.new_empty(0 if centres is None else (N + BLOCK_N - 1) // BLOCK_N, dtype=torch.int32),
        wide(K, D),
        wide(K, V),
        wide(K, T),
        input.new_empty((K, T, D)),
        wide(T),
        wide(T),
        wide(D if smooth and not capped else 0),
        wide(V if smooth and capped else 0),
        input.new_empty((T, D) if smooth and capped else (0,)),
    )


@operator(
    "linear_cross_entropy::tail_backward",
    f"(Tensor grad_loss, Tensor grad_lse, {OPERANDS}, Tensor lse, Tensor nll, "
    f"Tensor maximum, Tensor total, Tensor kept, {', '.join(f'Tensor {name}' for name in KEPT)}, "
    f"{SETTINGS}, {NEEDS}) -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias, Tensor report)",
    tags=TAGS,
)
def tail_backward(
    grad_loss: Tensor,  # (N,)
    grad_lse: Tensor,  # (N,)
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    order: Tensor | None,
    centres: Tensor | None,
    lse: Tensor,
    nll: Tensor,
    maximum: Tensor,
    total: Tensor,
    kept: Tensor,
    tile_lse: Tensor,
    residual: Tensor,
    mass_slope: Tensor,
    mean_slope: Tensor,
    position: Tensor,
    permutation: Tensor,
    of_block: Tensor,
    typical: Tensor,
    shape: Tensor,
    shape_square: Tensor,
    centre: Tensor,
    spread: Tensor,
    relative_spread: Tensor,
    class_sum: Tensor,
    flat_shape: Tensor,
    flat_centre: Tensor,
    label_smoothing: float,
    ignore_index: int,
    softcap: float,
    pack: bool,
    tile_classes: int,
    tolerance: float,
    choose: bool,
    tail: bool,
    first_order: bool,
    certify: bool,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of sum(grad_loss * loss + grad_lse * lse) where one is needed, and a report (report.py)."""
    from kernels.linear_cross_entropy.tail import forward  # noqa: PLC0415 - imports triton

    problem = Problem(input, weight, bias, target, label_smoothing, ignore_index, softcap)
    statistics = Statistics(nll, lse, nll, maximum, total)  # the loss itself is not read
    remembered = (
        tile_lse, residual, mass_slope, mean_slope, position, permutation, of_block,
        typical, shape, shape_square, centre, spread, relative_spread, class_sum, flat_shape, flat_centre,
    )  # fmt: skip
    method = TailMethod(tolerance, tail, first_order, choose=choose)
    rows = None if int(kept) < 0 else int(kept)
    result, found = forward.gradients(
        problem, statistics, remembered, grad_loss, grad_lse,
        Needs(need_input, need_weight, need_bias), method, rows, order, tile_classes, certify=certify,
    )  # fmt: skip
    parts = (result.input, result.weight, result.bias)
    grad_input, grad_weight, grad_bias = (input.new_empty(0) if part is None else part for part in parts)
    return grad_input, grad_weight, grad_bias, found


@tail_backward.register_fake
def _(grad_loss: Tensor, grad_lse: Tensor, input: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    shapes = (input.shape, weight.shape, weight.shape[:1])
    gradients = (input.new_empty(shape if need else (0,)) for shape, need in zip(shapes, rest[-3:], strict=True))
    return *gradients, torch.empty(REPORT_LENGTH, dtype=torch.float64, device="cpu")


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    operands, report, settings = inputs[:6], inputs[6], inputs[7:]
    ctx.save_for_backward(*operands, *output[1:])
    # Or autograd would fill in zeros for what is kept of the tiles: as much memory again.
    ctx.set_materialize_grads(False)
    ctx.settings, ctx.report = settings, report


def _backward(ctx: Any, grad_loss: Tensor | None, grad_lse: Tensor | None, *_: Tensor) -> tuple[Any, ...]:
    *operands, lse, nll, maximum, total, kept = ctx.saved_tensors[:11]
    upstream = (per_token(g, lse) for g in (grad_loss, grad_lse))
    needs = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], operands[2] is not None and ctx.needs_input_grad[2])
    *gradients, report = tail_backward(
        *upstream, *operands, lse, nll, maximum, total, kept,
        *ctx.saved_tensors[11:], *ctx.settings, *needs,
    )  # fmt: skip
    if ctx.report is not None:
        ctx.report.copy_(report)
    none_of_settings = (None,) * (4 + len(ctx.settings))
    return *(g if need else None for g, need in zip(gradients, needs, strict=True)), *none_of_settings


tail_forward.register_autograd(_backward, setup_context=_setup)
