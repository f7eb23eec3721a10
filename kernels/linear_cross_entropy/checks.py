"""Argument checks: one clear error, before anything is launched."""

import math
from numbers import Real

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
TARGET_DTYPES = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)
REDUCTIONS = ("mean", "sum", "none")
GRADIENTS = ("auto", "corrected", "exact", "filtered")
NUMBERS = (Real, Tensor, torch.SymFloat, torch.SymInt)  # numpy's are Real; the last two under torch.compile
MINIMUM_CAPABILITY = (8, 0)  # bf16 products, asynchronous copies


def check_operands(
    input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None, weight: Tensor | None
) -> None:
    """What the tensors are, then how they fit together."""
    if weight is not None:
        raise NotImplementedError("weight: class weights are not supported; leave it None")
    if target.is_floating_point():
        raise NotImplementedError(
            f"target: soft targets (dtype {target.dtype}) are not supported; give class indices as integers"
        )
    if target.dtype not in TARGET_DTYPES:
        raise TypeError(f"target: dtype {target.dtype}; allowed are integers, such as torch.int64")
    if input.dtype not in DTYPES:
        raise TypeError(f"input: dtype {input.dtype}; allowed are bfloat16, float16 and float32")
    if input.device.type not in ("cuda", "cpu"):
        raise ValueError(f"input: on {input.device}; allowed are CUDA and CPU tensors")
    if input.device.type == "cuda" and torch.cuda.get_device_capability(input.device) < MINIMUM_CAPABILITY:
        raise ValueError(f"input: on {torch.cuda.get_device_name(input.device)}; needs Ampere or later")
    _check_shapes(input, linear_weight, target, linear_bias)
    for name, tensor in (("linear_weight", linear_weight), ("linear_bias", linear_bias), ("target", target)):
        if tensor is not None and tensor.device != input.device:
            raise ValueError(f"{name}: on {tensor.device}; input is on {input.device}")
        if tensor is not None and name != "target" and tensor.dtype != input.dtype:
            raise TypeError(f"{name}: dtype {tensor.dtype}; input has {input.dtype} (torch.autocast casts them alike)")


def _check_shapes(input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None) -> None:
    if input.ndim == 0:
        raise ValueError("input: a scalar; it needs at least the hidden dimension, shape (..., D)")
    if linear_weight.ndim != 2 or 0 in linear_weight.shape:
        raise ValueError(f"linear_weight: shape {tuple(linear_weight.shape)}; it must be (V, D), both positive")
    V, D = linear_weight.shape
    if input.shape[-1] != D:
        raise ValueError(f"input: last dimension {input.shape[-1]}; linear_weight has hidden size D {D}")
    if target.shape != input.shape[:-1]:
        raise ValueError(
            f"target: shape {tuple(target.shape)}; input of shape {tuple(input.shape)} needs one class a token,"
            f" shape {tuple(input.shape[:-1])}"
        )
    if linear_bias is not None and linear_bias.shape != (V,):
        raise ValueError(f"linear_bias: shape {tuple(linear_bias.shape)}; linear_weight has V {V}, so ({V},)")


def check_settings(
    label_smoothing: float,
    reduction: str,
    softcap: float | None,
    gradient: str,
    filter_eps: float | None,
    ignore_index: int | None,
) -> None:
    """Values that are not tensors."""
    _check_number("label_smoothing", label_smoothing, "a number in [0, 1]")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing: {label_smoothing}; it must lie in [0, 1]")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: {reduction!r}; allowed are 'mean', 'sum' and 'none'")
    if softcap is not None:
        _check_number("softcap", softcap, "a positive, finite number, or None")
    if softcap is not None and not (softcap > 0.0 and math.isfinite(softcap)):
        raise ValueError(f"softcap: {softcap}; it must be positive and finite, or None")
    if gradient not in GRADIENTS:
        raise ValueError(f"gradient: {gradient!r}; allowed are 'auto', 'corrected', 'exact' and 'filtered'")
    if ignore_index is not None and not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index: {ignore_index!r}; it must be an integer, or None for -100")
    if filter_eps is not None:
        _check_number("filter_eps", filter_eps, "a number in (0, 1), or None for no filter")
    if filter_eps is not None and not 0.0 < filter_eps < 1.0:
        raise ValueError(f"filter_eps: {filter_eps}; it must lie in (0, 1), or be None for no filter")


def _check_number(name: str, value: object, allowed: str) -> None:
    """Before it is compared: what is no number fails there, in Python's words and without its name."""
    if not isinstance(value, NUMBERS):
        raise TypeError(f"{name}: {value!r}; it must be {allowed}")


def check_tail(gradient: str, gradient_tolerance: float | None, return_stats: bool) -> None:
    """Settings of the tail-corrected gradient."""
    if gradient_tolerance is not None:
        _check_number("gradient_tolerance", gradient_tolerance, "a number in (0, 1), or None for torch's own")
    if gradient_tolerance is not None and not 0.0 < gradient_tolerance < 1.0:
        raise ValueError(f"gradient_tolerance: {gradient_tolerance}; it must lie in (0, 1), or be None for torch's own")
    if gradient_tolerance is not None and gradient not in ("auto", "corrected"):
        raise ValueError(
            f"gradient_tolerance: {gradient_tolerance} with gradient={gradient!r}, which has none; leave it None"
        )
    if return_stats and torch.compiler.is_compiling():
        raise ValueError("return_stats: True under torch.compile, which cannot fill it in; call it uncompiled")


def check_order(vocabulary_order: Tensor | None, linear_weight: Tensor) -> None:
    """Shape, dtype and device; that it is a permutation would be a host synchronisation to know."""
    if vocabulary_order is None:
        return
    V = linear_weight.shape[0]
    if vocabulary_order.shape != (V,) or vocabulary_order.dtype != torch.int64:
        raise ValueError(
            f"vocabulary_order: shape {tuple(vocabulary_order.shape)}, dtype {vocabulary_order.dtype};"
            f" it must be a permutation of the {V} classes, shape ({V},), torch.int64"
        )
    if vocabulary_order.device != linear_weight.device:
        raise ValueError(f"vocabulary_order: on {vocabulary_order.device}; linear_weight is on {linear_weight.device}")


def check_centres(token_centres: Tensor | None, linear_weight: Tensor) -> None:
    """Shape, dtype and device."""
    if token_centres is None:
        return
    D = linear_weight.shape[1]
    if token_centres.ndim != 2 or token_centres.shape[1] != D or not 1 < len(token_centres) <= 64:
        raise ValueError(
            f"token_centres: shape {tuple(token_centres.shape)}; it must be (K, {D}), K from 2 to 64, or None for one"
        )
    if token_centres.dtype != torch.float32 or token_centres.device != linear_weight.device:
        raise ValueError(
            f"token_centres: {token_centres.dtype} on {token_centres.device};"
            f" it must be torch.float32 on {linear_weight.device}"
        )


def check_targets_in_range(target: Tensor, vocab_size: int, ignore_index: int) -> None:
    """Reads the targets back: one host synchronisation."""
    target = target.to(torch.int64)  # vocab_size or ignore_index may be no number of a narrow dtype
    wrong = ((target < 0) | (target >= vocab_size)) & (target != ignore_index)
    if bool(wrong.any()):
        example = int(target[wrong].flatten()[0])
        raise ValueError(
            f"target: {int(wrong.sum())} classes outside [0, {vocab_size}), for example {example};"
            f" ignore_index is {ignore_index}"
        )
