"""Two implementations of one's own, measured by examples/own_implementation.yaml without an entry in the registry.

`chunked_loss` is the shorter form: a plain function with the contract's signature. It takes every case, has no options,
and needs nothing but torch.

`even_chunks` is the longer form, an `Implementation`: `build` takes options from the suite, `supports` says what it
cannot do. Both compute the loss in chunks of tokens, and compute each chunk's logits again in the backward, so that
only one chunk of logits is alive at a time.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from implementations.contract import Case, DeviceType, Implementation, LossFunction, Reduction

CHUNK_TOKENS = 64


def chunk_losses(
    input: Tensor,  # (chunk, D)
    linear_weight: Tensor,  # (V, D)
    target: Tensor,  # (chunk,)
    linear_bias: Tensor | None,  # (V,)
    label_smoothing: float,
    ignore_index: int,
    softcap: float | None,
) -> Tensor:  # (chunk,)
    """The losses of a few tokens; 0 where a row is ignored."""
    logits = F.linear(input, linear_weight, linear_bias)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(
        logits.float(), target, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="none"
    )


def chunked_loss(
    input: Tensor,  # (N, D)
    linear_weight: Tensor,  # (V, D)
    target: Tensor,  # (N,)
    *,
    linear_bias: Tensor | None,  # (V,)
    label_smoothing: float,
    ignore_index: int,
    softcap: float | None,
    reduction: Reduction,
    chunk_tokens: int = CHUNK_TOKENS,  # not the contract's, so the harness never passes it
) -> Tensor:
    """The contract's operation, `chunk_tokens` rows at a time."""
    losses = torch.cat(
        [
            checkpoint(
                chunk_losses,
                rows,
                linear_weight,
                targets,
                linear_bias,
                label_smoothing,
                ignore_index,
                softcap,
                use_reentrant=False,
            )
            for rows, targets in zip(torch.split(input, chunk_tokens), torch.split(target, chunk_tokens), strict=True)
        ]
    )  # (N,)
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / (target != ignore_index).sum()


def supports(case: Case, device: DeviceType) -> str | None:  # noqa: ARG001 - the same on every device
    """None, or a phrase that reads well as a footnote of the table."""
    if case.tokens % CHUNK_TOKENS:
        return f"the number of tokens is no multiple of its chunk, {CHUNK_TOKENS}"
    return None


def build(chunks_at_once: int = 1) -> LossFunction:
    """Called once in the worker's process, with the suite's options. Raises ValueError if there is no such chunk.

    A library would be imported here, not at the top: if it is missing, its ModuleNotFoundError makes the row
    `unavailable`, with the pip line from `requires`, and the other rows go on.
    """
    if chunks_at_once < 1:
        raise ValueError(f"chunks_at_once is 1 or more, not {chunks_at_once!r}")
    return functools.partial(chunked_loss, chunk_tokens=chunks_at_once * CHUNK_TOKENS)


even_chunks = Implementation(build=build, supports=supports)
