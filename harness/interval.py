"""Intervals of medians, without numpy: the parent decides with them when enough samples are in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median

_CONFIDENCE = 0.95
FEWEST_ROUNDS = 6  # all of n rounds lie on one side of the median with probability 2^(1-n): under 5 % from 6 on


def median_interval(samples: Sequence[float]) -> tuple[float, float]:
    """A distribution-free interval that covers the median with at least 95 % for independent samples.

    The order statistics x_(k) and x_(n+1-k), for the largest k whose binomial tails weigh at most 5 % together (David
    and Nagaraja, Order Statistics, 2003, section 7.1); the whole range where even that is too narrow.
    """
    ordered, n = sorted(samples), len(samples)
    tail, k = 0.0, 0
    while k < n // 2:
        tail += math.comb(n, k) / 2**n
        if 2 * tail > 1 - _CONFIDENCE:
            break
        k += 1
    k = max(k, 1)
    return ordered[k - 1], ordered[n - k]


def relative_width(samples: Sequence[float]) -> float:
    """Width of the median's interval as a fraction of the median."""
    low, high = median_interval(samples)
    middle = sorted(samples)[len(samples) // 2]
    return (high - low) / middle if middle > 0 else 0.0


def by_round(rounds: Iterable[int], samples: Iterable[float]) -> dict[int, float]:
    """The median of each round's samples."""
    turns: dict[int, list[float]] = {}
    for number, sample in zip(rounds, samples, strict=True):
        turns.setdefault(number, []).append(sample)
    return {number: median(taken) for number, taken in turns.items()}


def ratio_width(head: Mapping[int, float], base: Mapping[int, float]) -> float:
    """Width of the 95 % interval of the median of head / base over their common rounds, as a fraction of that median.

    What slows a whole round, a lower clock or a warmer chip, cancels. Infinite below 6 rounds: no interval of order
    statistics covers 95 % there.
    """
    ratios = [head[number] / base[number] for number in sorted(head.keys() & base.keys()) if base[number] > 0]
    return relative_width(ratios) if len(ratios) >= FEWEST_ROUNDS else math.inf
