"""`torchtune_chunked`, `torchtune_chunked_compiled`: torchtune's `CEWithChunkedOutputLoss`.

Library: torchtune 0.6.1 (`torchtune.modules.loss`). Importing it needs torchao, which it does not declare and whose
releases after 0.13.0 lack what 0.6.1 imports: `pip install torchtune==0.6.1 torchao==0.13.0`.

The class takes a list of logits chunks, made here as torchtune's `TransformerDecoder.chunked_output` makes them, by
splitting the tokens. So linear layer, softcap and bias are this adapter's, as they are the model's in torchtune. All
chunks are alive at once: the logits exist in full in the inputs' dtype, only their fp32 copies come chunk by chunk.

Supports: softcap, bias, ignored rows, every dtype. Refuses label smoothing and every reduction but the mean, which the
class does not have. The loss is fp32; with every row ignored it is nan, with zero gradients, as in torch.

The class's documentation recommends to compile its method `compute_cross_entropy`, so that upcast and loss of a chunk
become one kernel; `torchtune_chunked_compiled` does. The paper's Table 3 has the figures of the uncompiled one.

Options: `chunks` (8, as torchtune's recipes use it).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from implementations.baseline import softcapped_linear
from implementations.contract import Case, DeviceType, Implementation, LossFunction, Reduction


def supports(case: Case, device: DeviceType) -> str | None:  # noqa: ARG001 - the same on every device
    if case.label_smoothing:
        return "torchtune 0.6.1's chunked loss has no label smoothing"
    if case.reduction != "mean":
        return f"torchtune 0.6.1's chunked loss offers no reduction but the mean, not {case.reduction}"
    return None


def _build(compile: bool, chunks: int = 8) -> LossFunction:
    """Raises ModuleNotFoundError without torchtune, ImportError without torchao, ValueError if `chunks` is below 1."""
    if isinstance(chunks, bool) or not isinstance(chunks, int) or chunks < 1:
        raise ValueError(f"chunks is a number of chunks, 1 or more, not {chunks!r}")
    from torchtune.modules.loss import CEWithChunkedOutputLoss

    chunked = CEWithChunkedOutputLoss(num_output_chunks=chunks)
    if compile:
        chunked.compute_cross_entropy = torch.compile(chunked.compute_cross_entropy)

    def loss(
        input: Tensor,  # (N, D)
        linear_weight: Tensor,  # (V, D)
        target: Tensor,  # (N,)
        *,
        linear_bias: Tensor | None,  # (V,)
        label_smoothing: float,  # noqa: ARG001 - 0, says `supports`
        ignore_index: int,
        softcap: float | None,
        reduction: Reduction,  # noqa: ARG001 - mean, says `supports`
    ) -> Tensor:
        chunked.ignore_index = ignore_index
        logits = [  # at most `chunks` times (1, N / chunks, V)
            softcapped_linear(chunk, linear_weight, linear_bias, softcap)
            for chunk in input.unsqueeze(0).chunk(chunks, dim=1)
        ]
        return cast(Tensor, chunked(logits, target.unsqueeze(0)))

    return loss


def build(chunks: int = 8) -> LossFunction:
    return _build(False, chunks)


def build_compiled(chunks: int = 8) -> LossFunction:
    torch.compiler.reset()  # as in torch_compile.py
    return _build(True, chunks)


torchtune_chunked = Implementation(build=build, supports=supports, requires="torchtune==0.6.1")
torchtune_chunked_compiled = Implementation(build=build_compiled, supports=supports, requires="torchtune==0.6.1")
