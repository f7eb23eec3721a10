"""torch.library operators: what autograd, torch.compile and CUDA graphs see of this package.

`forward` and `backward` keep per-token losses and per-token upstream gradients, so that one pair serves
every reduction, any upstream gradient and a differentiable lse; the reduction itself is plain torch.
`fused` reduces to a scalar and computes the gradients at once; its backward scales them in place.

Conventions: softcap 0 is none, eps 0 is no filter; gradients that are not needed are tensors of no
elements, for an operator's outputs cannot be None.
"""

# ruff: noqa: ARG001 - an operator's implementation, fake and autograd formula take what its schema says

from typing import Any

import torch
from torch import Tensor

from kernels.linear_cross_entropy import engine
from kernels.linear_cross_entropy.operator import operator
from kernels.linear_cross_entropy.problem import Gradients, Method, Needs, Problem, Statistics

OPERANDS = "Tensor input, Tensor weight, Tensor? bias, Tensor target"
SETTINGS = "float label_smoothing, int ignore_index, float softcap, bool pack, bool filtered, float eps, bool sort"
NEEDS = "bool need_input, bool need_weight, bool need_bias"


@operator(
    "linear_cross_entropy::forward",
    f"({OPERANDS}, {SETTINGS}) -> (Tensor loss, Tensor lse, Tensor nll, Tensor maximum, Tensor total, Tensor kept)",
)
def forward(
    input: Tensor,  # (N, D)
    weight: Tensor,  # (V, D)
    bias: Tensor | None,  # (V,)
    target: Tensor,  # (N,)
    label_smoothing: float,
    ignore_index: int,
    softcap: float,
    pack: bool,
    filtered: bool,
    eps: float,
    sort: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The Statistics, each (N,) fp32, and the count of packed rows, a host tensor; -1 where all rows take part.

    How gradients will be computed is of no interest here.
    """
    problem = Problem(input, weight, bias, target, label_smoothing, ignore_index, softcap)
    kept = engine.count_kept(problem, pack)
    result = engine.statistics(problem, kept)
    return *result.tensors(), torch.tensor(-1 if kept is None else kept)


@forward.register_fake
def _(input: Tensor, *_: Any) -> tuple[Tensor, ...]:
    tokens = (input.new_empty(input.shape[0], dtype=torch.float32) for _ in range(5))
    return *tokens, torch.empty((), dtype=torch.int64, device="cpu")


@operator(
    "linear_cross_entropy::backward",
    f"(Tensor grad_loss, Tensor grad_lse, {OPERANDS}, Tensor maximum, Tensor total, Tensor kept, "
    f"{SETTINGS}, {NEEDS})"
    " -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)",
)
def backward(
    grad_loss: Tensor,  # (N,)
    grad_lse: Tensor,  # (N,)
    input: Tensor,  # (N, D)
    weight: Tensor,  # (V, D)
    bias: Tensor | None,  # (V,)
    target: Tensor,  # (N,)
    maximum: Tensor,  # (N,)
    total: Tensor,  # (N,)
    kept: Tensor,  # () on the host: the forward's
    label_smoothing: float,
    ignore_index: int,
    softcap: float,
    pack: bool,
    filtered: bool,
    eps: float,
    sort: bool,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of sum(grad_loss * loss + grad_lse * lse) with respect to the operands that need one."""
    problem = Problem(input, weight, bias, target, label_smoothing, ignore_index, softcap)
    needs, method = Needs(need_input, need_weight, need_bias), Method(filtered, eps, sort)
    # Of the statistics, the gradients read the normalisation alone.
    statistics = Statistics(maximum, maximum, maximum, maximum, total)
    rows = None if int(kept) < 0 else int(kept)
    result = engine.gradients(problem, statistics, grad_loss, grad_lse, needs, method, rows)
    return _tensors(result, input)


@backward.register_fake
def _(grad_loss: Tensor, grad_lse: Tensor, input: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return _fake_gradients(input, weight, *rest[-3:])


@operator(
    "linear_cross_entropy::fused",
    f"({OPERANDS}, {SETTINGS}, bool mean, {NEEDS})"
    " -> (Tensor loss, Tensor nll, Tensor grad_input, Tensor grad_weight, Tensor grad_bias)",
)
def fused(
    input: Tensor,  # (N, D)
    weight: Tensor,  # (V, D)
    bias: Tensor | None,  # (V,)
    target: Tensor,  # (N,)
    label_smoothing: float,
    ignore_index: int,
    softcap: float,
    pack: bool,
    filtered: bool,
    eps: float,
    sort: bool,
    mean: bool,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The reduced loss (fp32 scalar), nll (N,), and the gradients of that loss.

    Softmax values need the complete lse (paper, Section 5.2.1: "a barrier"); here the barrier is the order
    of launches on the stream, so nothing can deadlock and both phases use the whole GPU.
    """
    problem = Problem(input, weight, bias, target, label_smoothing, ignore_index, softcap)
    needs, method = Needs(need_input, need_weight, need_bias), Method(filtered, eps, sort)
    kept = engine.count_kept(problem, pack)
    result = engine.statistics(problem, kept)
    scale = (target != ignore_index).sum().float().reciprocal() if mean else result.loss.new_ones(())
    grad_loss = scale.expand(input.shape[0])
    gradients = engine.gradients(problem, result, grad_loss, torch.zeros_like(result.lse), needs, method, kept)
    loss = result.loss.sum()
    if mean:
        loss = loss * scale  # 0 * inf: nan where every row is ignored, as torch
    return loss, result.nll, *_tensors(gradients, input)


@fused.register_fake
def _(input: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    loss = input.new_empty((), dtype=torch.float32)
    nll = input.new_empty(input.shape[0], dtype=torch.float32)
    return loss, nll, *_fake_gradients(input, weight, *rest[-3:])


@torch.library.custom_op(
    "linear_cross_entropy::scale_",
    mutates_args=("grad_input", "grad_weight", "grad_bias"),
    schema="(Tensor(a!) grad_input, Tensor(b!) grad_weight, Tensor(c!) grad_bias, Tensor factor) -> ()",
)
def scale_(grad_input: Tensor, grad_weight: Tensor, grad_bias: Tensor, factor: Tensor) -> None:
    """Multiply the gradients by an fp32 scalar, in place, rounding once."""
    for gradient in (grad_input, grad_weight, grad_bias):
        if gradient.numel() == 0:
            continue
        if gradient.is_cuda:
            from kernels.linear_cross_entropy.scaling import scale_in_place  # noqa: PLC0415 - imports triton

            with torch.cuda.device(gradient.device):
                scale_in_place(gradient, factor)
        else:
            gradient.copy_(gradient.float() * factor)


@scale_.register_fake
def _(grad_input: Tensor, grad_weight: Tensor, grad_bias: Tensor, factor: Tensor) -> None:
    return None


def per_token(upstream: Tensor | None, like: Tensor) -> Tensor:  # (N,)
    """An upstream gradient as kernels read it: autograd has none where nobody differentiates, a mean's is expanded."""
    return torch.zeros_like(like) if upstream is None else upstream.contiguous()


def _setup_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    input, weight, bias, target, *settings = inputs
    ctx.save_for_backward(input, weight, bias, target, *output[3:])
    ctx.set_materialize_grads(False)  # zeros for outputs that nobody differentiates
    ctx.settings = settings


def _backward_of_forward(ctx: Any, grad_loss: Tensor | None, grad_lse: Tensor | None, *_: Tensor) -> tuple[Any, ...]:
    input, weight, bias, target, maximum, total, kept = ctx.saved_tensors
    needs = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], bias is not None and ctx.needs_input_grad[2])
    upstream = (per_token(g, maximum) for g in (grad_loss, grad_lse))
    gradients = backward(*upstream, input, weight, bias, target, maximum, total, kept, *ctx.settings, *needs)
    none_of_settings = (None,) * (1 + len(ctx.settings))
    return *(g if need else None for g, need in zip(gradients, needs, strict=True)), *none_of_settings


def _setup_fused(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[2:])
    # Or autograd would fill in zeros for the gradients' own gradients: a second dC.
    ctx.set_materialize_grads(False)
    ctx.needs, ctx.inputs, ctx.spent = inputs[-3:], len(inputs), False


def _backward_of_fused(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Any, ...]:
    if ctx.spent:
        raise RuntimeError(
            "linear_cross_entropy(fused=True): the first backward scaled the stored gradients in place and"
            " handed them out; there is nothing left for a second one. Use fused=False to call it twice."
        )
    ctx.spent = True
    gradients = ctx.saved_tensors
    scale_(*gradients, grad_loss)
    return *(g if need else None for g, need in zip(gradients, ctx.needs, strict=True)), *((None,) * (ctx.inputs - 3))


forward.register_autograd(_backward_of_forward, setup_context=_setup_forward)
fused.register_autograd(_backward_of_fused, setup_context=_setup_fused)


def _tensors(gradients: Gradients, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    parts = (gradients.input, gradients.weight, gradients.bias)
    grad_input, grad_weight, grad_bias = (like.new_empty(0) if part is None else part for part in parts)
    return grad_input, grad_weight, grad_bias


def _fake_gradients(input: Tensor, weight: Tensor, *needs: bool) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (input.shape, weight.shape, weight.shape[:1])
    grad_input, grad_weight, grad_bias = (
        input.new_empty(shape if need else (0,)) for shape, need in zip(shapes, needs, strict=True)
    )
    return grad_input, grad_weight, grad_bias
