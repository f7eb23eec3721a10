"""The definitions, written out: full softmax in fp64, a loop a bin. Slow, and obviously right."""

import math

import torch
from torch import Tensor

from harness.calibration.head import Head


def random_head(seed: int, vocab_size: int = 23, hidden_size: int = 8, bias: bool = False, **options) -> Head:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(vocab_size, hidden_size, generator=generator, dtype=torch.float64)
    linear_bias = torch.randn(vocab_size, generator=generator, dtype=torch.float64) if bias else None
    return Head(weight, linear_bias, **options)


def random_tokens(seed: int, head: Head, tokens: int = 200, ignored: float = 0.0) -> tuple[Tensor, Tensor]:
    """hidden (N, D) and targets (N,) drawn from the head's own predictions, so that it is nearly calibrated."""
    generator = torch.Generator().manual_seed(seed + 1000)
    hidden = torch.randn(tokens, head.hidden_size, generator=generator, dtype=torch.float64)
    target = torch.multinomial(probabilities(hidden, head), 1, generator=generator)[:, 0]
    target[torch.randperm(tokens, generator=generator)[: round(ignored * tokens)]] = -100
    return hidden, target


def identity_head(vocab_size: int, **options) -> Head:
    """Its hidden states are its logits, before softcap and temperature."""
    return Head(torch.eye(vocab_size, dtype=torch.float64), **options)


def probabilities(hidden: Tensor, head: Head) -> Tensor:
    """(N, V)."""
    z = hidden.double() @ head.linear_weight.double().T
    if head.linear_bias is not None:
        z = z + head.linear_bias.double()
    if head.softcap is not None:
        z = head.softcap * torch.tanh(z / head.softcap)
    return torch.softmax(z / head.temperature, 1)


def width_gaps(confidence: Tensor, right: Tensor, bin_count: int) -> list[tuple[int, float]]:
    """(count, accuracy - mean confidence) of each bin of equal width that is not empty."""
    gaps = []
    for b in range(bin_count):
        low, high = b / bin_count, (b + 1) / bin_count
        inside = (confidence >= low) & ((confidence < high) | (b == bin_count - 1))
        if inside.any():
            gaps.append((int(inside.sum()), float(right[inside].double().mean() - confidence[inside].mean())))
    return gaps


def mass_gaps(confidence: Tensor, right: Tensor, bin_count: int) -> list[tuple[int, float]]:
    """(count, accuracy - mean confidence) of each bin of equal mass; equal confidences share what was right."""
    shared = torch.stack([right[confidence == c].double().mean() for c in confidence])
    order = confidence.argsort()
    n = confidence.numel()
    gaps = []
    for b in range(bin_count):
        part = order[b * n // bin_count : (b + 1) * n // bin_count]
        if part.numel():
            gaps.append((part.numel(), float(shared[part].mean() - confidence[part].mean())))
    return gaps


def l1(gaps: list[tuple[int, float]]) -> float:
    return sum(n * abs(gap) for n, gap in gaps) / sum(n for n, _ in gaps)


def l2(gaps: list[tuple[int, float]]) -> float:
    return math.sqrt(sum(n * gap**2 for n, gap in gaps) / sum(n for n, _ in gaps))


def entropy(p: Tensor) -> Tensor:
    return -torch.special.xlogy(p, p).sum(-1)
