"""The contract in fp64, and the distance of an implementation from it. Shared by the tests here and in tests/gpu."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100

# oneMKL 2024.2 chooses the kernel behind torch.tanh on its first call, and when two threads make that call together one
# may get a kernel of low accuracy, once (pytorch#188792). One element means one thread.
for _dtype in (torch.float32, torch.float64):
    torch.tanh(torch.zeros(1, dtype=_dtype))


def make_tensors(
    tokens: int = 16, hidden_size: int = 32, vocab_size: int = 200, *, ignored: int = 0, bias: bool = False
) -> dict[str, Any]:
    """fp32 leaves whose logits have a standard deviation of about 2; the first `ignored` rows are ignored."""
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(tokens, hidden_size, generator=generator)
    linear_weight = torch.randn(vocab_size, hidden_size, generator=generator) * (2 / hidden_size**0.5)
    linear_bias = torch.randn(vocab_size, generator=generator) if bias else None
    target = torch.randint(vocab_size, (tokens,), generator=generator)
    target[:ignored] = IGNORE_INDEX
    return {"input": input, "linear_weight": linear_weight, "target": target, "linear_bias": linear_bias}


def upstream(loss: Tensor) -> Tensor:
    """An upstream gradient that is not 1, exact in every dtype; it differs from token to token where each has one."""
    if loss.dim() == 0:
        return torch.full_like(loss, 1.75)
    return (torch.arange(len(loss), device=loss.device) % 5 + 1).to(loss.dtype) / 2


def contract_in_fp64(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None,
    softcap: float | None,
    **arguments: Any,
) -> Tensor:
    logits = F.linear(input, linear_weight, linear_bias)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, target, **arguments)


def loss_and_gradients(
    loss_function: Any, tensors: dict[str, Any], dtype: torch.dtype, **settings: Any
) -> list[Tensor]:
    """[loss, dinput, dlinear_weight, dlinear_bias if there is a bias], from fresh leaves in `dtype`."""
    fresh = {
        name: tensor if tensor is None or name == "target" else tensor.to(dtype, copy=True).requires_grad_()
        for name, tensor in tensors.items()
    }
    arguments = {"label_smoothing": 0.0, "softcap": None, "reduction": "mean", "ignore_index": IGNORE_INDEX, **settings}
    loss = loss_function(
        fresh["input"], fresh["linear_weight"], fresh["target"], linear_bias=fresh["linear_bias"], **arguments
    )
    loss.backward(upstream(loss.detach()))
    leaves = [fresh[name] for name in ("input", "linear_weight", "linear_bias") if fresh[name] is not None]
    return [loss.detach(), *(leaf.grad for leaf in leaves)]


def relative_error(given: Tensor, expected: Tensor) -> float:
    """norm(given - expected) / norm(expected), norm(given) where `expected` is 0; inf unless `given` is finite."""
    if given.shape != expected.shape or not given.isfinite().all():
        return math.inf
    scale = expected.norm().item()
    return (given.double() - expected).norm().item() / (scale or 1.0)


def worst_error(
    loss_function: Any, tensors: dict[str, Any], dtype: torch.dtype = torch.float32, **settings: Any
) -> float:
    """The largest relative error of loss and gradients in `dtype`, against fp64 on the same rounded tensors."""
    rounded = {
        name: tensor.to(dtype) if tensor is not None and tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    given = loss_and_gradients(loss_function, rounded, dtype, **settings)
    expected = loss_and_gradients(contract_in_fp64, rounded, torch.float64, **settings)
    return max(relative_error(g, e) for g, e in zip(given, expected, strict=True))
