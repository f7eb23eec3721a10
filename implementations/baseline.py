"""`baseline`: the contract's two lines in torch eager, as a model without a fused loss computes them.

Library: torch alone, any version this project runs on. Supports every case.

The logits, and the softcap on them, are in the dtype of the inputs; the loss is computed from an fp32 copy and is fp32.
Both (N, V) tensors exist at once, and so do their gradients: this is the memory that the other rows save. When every
row is ignored the mean is nan and the gradients are zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from implementations.contract import Implementation, LossFunction, Reduction


def softcapped_linear(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, softcap: float | None
) -> Tensor:
    """The logits (..., V) of `input` (..., D) and `linear_weight` (V, D), in the dtype of the inputs."""
    logits = F.linear(input, linear_weight, linear_bias)
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def eager_loss(
    input: Tensor,  # (N, D)
    linear_weight: Tensor,  # (V, D)
    target: Tensor,  # (N,)
    *,
    linear_bias: Tensor | None,  # (V,)
    label_smoothing: float,
    ignore_index: int,
    softcap: float | None,
    reduction: Reduction,
) -> Tensor:
    """The operation of the contract, in plain torch."""
    logits = softcapped_linear(input, linear_weight, linear_bias, softcap)  # (N, V)
    return F.cross_entropy(
        logits.float(), target, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=reduction
    )


def build() -> LossFunction:
    return eager_loss


baseline = Implementation(build=build)
