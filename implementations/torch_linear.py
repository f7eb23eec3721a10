"""`torch_linear_cross_entropy`: `torch.nn.functional.linear_cross_entropy` with its chunked options.

Library: torch 2.13 or newer (checked with 2.13.0: torch/nn/functional.py, torch/nn/modules/linear_cross_entropy.py); on
an older torch `build` raises ImportError.

For mean and sum the forward takes the tokens in chunks, computes loss and gradients of each and keeps the gradients,
which the backward scales by the upstream gradient, in place. For none the backward computes the chunks a second time.

Supports: bias, ignored rows, all reductions, every dtype, and label smoothing, though not chunked: with smoothing torch
warns that it ignores the options and computes all logits at once, like `baseline` without its fp32 copy. That row's
memory is not the chunked path's. Refuses softcap, which the function does not have, and, without smoothing, a mean of
which every row is ignored: its gradients are nan, not zero.
Differs from the contract:
- the loss has the inputs' dtype. In bf16 it is also summed over chunks in bf16; in fp16 a sum above 65504 is inf;
- with label smoothing the softmax is computed from 16-bit logits into 16-bit log-probabilities, without an fp32 copy;
- a second backward through one graph raises RuntimeError.

Options, those of `torch.nn.LinearCrossEntropyOptions`: `acc_policy`, `chunking_method`, `batch_chunk_size`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from implementations.contract import Case, DeviceType, Implementation, LossFunction, Reduction


def supports(case: Case, device: DeviceType) -> str | None:  # noqa: ARG001 - the same on every device
    if case.softcap is not None:
        return "torch's linear_cross_entropy has no softcap"
    if case.ignored_fraction >= 1 and case.reduction == "mean" and not case.label_smoothing:
        return "torch 2.13's chunked mean has nan gradients when every row is ignored"
    return None


def chunked_in_forward(case: Case) -> bool:
    """With smoothing nothing is chunked, and for reduction none the backward computes the chunks again."""
    return not case.label_smoothing and case.reduction != "none"


def build(
    acc_policy: str = "auto", chunking_method: str | None = "auto", batch_chunk_size: int | None = None
) -> LossFunction:
    """Raises ImportError on torch < 2.13, ValueError from torch if an option has a value that it does not know."""
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        raise ImportError(f"torch.nn.functional.linear_cross_entropy needs torch >= 2.13; this is {torch.__version__}")
    options = torch.nn.LinearCrossEntropyOptions(
        acc_policy=acc_policy,  # type: ignore[arg-type]  # a Literal of torch's, which checks it
        chunking_method=chunking_method,
        batch_chunk_size=batch_chunk_size,
    )

    def loss(
        input: Tensor,  # (N, D)
        linear_weight: Tensor,  # (V, D)
        target: Tensor,  # (N,)
        *,
        linear_bias: Tensor | None,  # (V,)
        label_smoothing: float,
        ignore_index: int,
        softcap: float | None,  # noqa: ARG001 - None, says `supports`
        reduction: Reduction,
    ) -> Tensor:
        return F.linear_cross_entropy(
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            reduction=reduction,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            options=options,
        )

    return loss


torch_linear_cross_entropy = Implementation(
    build=build, supports=supports, requires="torch>=2.13", grads_in_forward=chunked_in_forward
)
