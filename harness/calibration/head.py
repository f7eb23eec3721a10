"""The last layer of a language model, and its logits chunk by chunk: (N, V) never exists as a whole.

    z = hidden @ linear_weight.T (+ linear_bias),  s = softcap * tanh(z / softcap),  p = softmax(s / temperature)

The temperature divides what the softcap has capped. The other order, softcap * tanh(z / (temperature * softcap)),
would be another family of distributions: its logits stay below the softcap, so it cannot sharpen beyond it.

N tokens, D hidden size, V vocabulary size, n tokens of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.worker.inputs import IGNORE_INDEX
from harness.worker.products import logits, slices, softcap_

CHUNK_BYTES = 1 << 28  # of logits; about three tensors of this size are alive at once


@dataclass(frozen=True, eq=False)
class Head:
    """Weights and what turns their logits into probabilities. Raises ValueError where shapes or values make no head."""

    linear_weight: Tensor  # (V, D)
    linear_bias: Tensor | None = None  # (V,)
    softcap: float | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.linear_weight.dim() != 2:
            raise ValueError(f"linear_weight must be (V, D), not {tuple(self.linear_weight.shape)}")
        if self.linear_bias is not None and tuple(self.linear_bias.shape) != (self.vocab_size,):
            raise ValueError(f"linear_bias must be ({self.vocab_size},), not {tuple(self.linear_bias.shape)}")
        for name, value in (("softcap", self.softcap), ("temperature", self.temperature)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive and finite, not {value}")

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.linear_weight.shape[0]

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.linear_weight.shape[1]


@dataclass(frozen=True, eq=False)
class Tokens:
    """Hidden states with the class that came next; only tokens that count, so N may be less than was given."""

    hidden: Tensor  # (N, D)
    target: Tensor  # (N,) int64, all in 0..V-1

    @property
    def count(self) -> int:
        """N."""
        return self.hidden.shape[0]


def counted_tokens(hidden: Tensor, target: Tensor, head: Head) -> Tokens:
    """The tokens whose target is not -100; copies `hidden` only if some are left out.

    hidden (N, D), target (N,) int64. Raises ValueError naming the argument that does not fit the head, or if no token
    counts: an average over nothing is no number.
    """
    if hidden.dim() != 2 or hidden.shape[1] != head.hidden_size:
        raise ValueError(f"hidden must be (N, {head.hidden_size}) for this head, not {tuple(hidden.shape)}")
    if tuple(target.shape) != tuple(hidden.shape[:1]) or target.dtype != torch.int64:
        raise ValueError(f"target must be ({hidden.shape[0]},) int64, not {tuple(target.shape)} {target.dtype}")
    counts = target != IGNORE_INDEX
    if not bool(counts.any()):
        raise ValueError(f"target: every one of {target.numel()} is {IGNORE_INDEX}; at least one token must count")
    if not bool(counts.all()):
        hidden, target = hidden[counts], target[counts]
    low, high = int(target.min()), int(target.max())
    if low < 0 or high >= head.vocab_size:
        raise ValueError(
            f"target must be in 0..{head.vocab_size - 1} or {IGNORE_INDEX}; it reaches from {low} to {high}"
        )
    return Tokens(hidden, target)


def capped_logits(hidden: Tensor, head: Head, dtype: torch.dtype) -> Tensor:
    """(n, V) s, softcap applied, temperature not; in `dtype`, fp32 or fp64. hidden (n, D)."""
    return softcap_(logits(hidden, head.linear_weight, head.linear_bias, dtype), head.softcap)


def scaled_logits(hidden: Tensor, head: Head, dtype: torch.dtype) -> Tensor:
    """(n, V) s / temperature, whose softmax is the prediction; in `dtype`, fp32 or fp64. hidden (n, D)."""
    s = capped_logits(hidden, head, dtype)
    return s if head.temperature == 1.0 else s.div_(head.temperature)


def token_chunks(tokens: int, vocab_size: int, chunk_bytes: int, dtype: torch.dtype) -> list[slice]:
    """Consecutive slices of tokens whose (n, V) logits in `dtype` take at most `chunk_bytes`, or one token each."""
    return slices(tokens, vocab_size * dtype.itemsize, chunk_bytes)


def class_blocks(head: Head, tokens: int, chunk_bytes: int, dtype: torch.dtype) -> Iterator[tuple[slice, Head]]:
    """The head cut along the vocabulary: W classes at a time whose (N, W) logits in `dtype` take at most `chunk_bytes`.

    Blocks share the memory of the head's weights. One class is the least: N * itemsize bytes.
    """
    for part in slices(head.vocab_size, tokens * dtype.itemsize, chunk_bytes):
        bias = None if head.linear_bias is None else head.linear_bias[part]
        yield part, replace(head, linear_weight=head.linear_weight[part], linear_bias=bias)
