"""Estimates with distribution-free intervals, without numpy: the parent decides with them when enough samples are in.

Ratios are read by the same functions (`harness.analysis.statistics.ratio`), so that rounds end by what is reported.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from statistics import fmean, median

_CONFIDENCE = 0.95
FEWEST_ROUNDS = 6  # all of n rounds lie on one side of the median with probability 2^(1-n): under 5 % from 6 on
_NORMAL_MAD = 0.6745  # median absolute deviation over standard deviation, of the normal distribution


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


def heavy_tailed(values: Sequence[float]) -> bool:
    """Whether too many values lie far out for noise of one kind: a clock that changed its state, a throttled third.

    Of such rounds the median is the better estimate, of all others `pair_mean_interval`; choosing by the weight of the
    tails is due to Hogg (1974, JASA 69). Asked of the standard deviation over that which the median absolute deviation
    of normal noise would stand for, which knows no sign: so it holds for a ratio and its inverse alike.
    """
    middle = median(values)
    deviation = median([abs(value - middle) for value in values])
    usual = 1.1 + 8.5 / len(values)  # 5 to 8 % of runs of normal noise exceed it, with 6 to 120 values
    spread = math.dist(values, [fmean(values)] * len(values)) / math.sqrt(len(values) - 1)  # statistics.stdev is slow
    return spread > usual * deviation / _NORMAL_MAD


def pair_mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Low, estimate, high: the median of the means of all pairs of values, each with itself too (Hodges, Lehmann 1963).

    Under normal noise it is worth 95 % of the mean, where the median is worth 64 %; up to 29 % of wild values cannot
    carry it off. The interval lies between order statistics of the means, by the exact null distribution of Wilcoxon's
    signed-rank statistic (Tukey 1949): at least 95 % for independent values that are symmetric about the truth, alike
    or not; from `FEWEST_ROUNDS` values on, below which it is their range.
    """
    ordered = sorted(values)
    means = sorted((one + other) / 2 for place, one in enumerate(ordered) for other in ordered[place:])
    k = _signed_rank(len(ordered))
    return means[k - 1], median(means), means[-k]


@lru_cache(maxsize=512)
def _signed_rank(n: int) -> int:
    """The largest k for which the k smallest values of the signed-rank statistic weigh at most 2.5 %; 1 at least."""
    sums = [1] + [0] * (n * (n + 1) // 2)  # how many of the 2^n choices of signs make each sum of positive ranks
    for rank in range(1, n + 1):
        for total in range(len(sums) - 1, rank - 1, -1):
            sums[total] += sums[total - rank]
    weight, k = 0, 0
    while 2 * (weight + sums[k]) <= (1 - _CONFIDENCE) * 2**n:
        weight += sums[k]
        k += 1
    return max(k, 1)


def ratio_width(head: Mapping[int, float], base: Mapping[int, float]) -> float:
    """Width of the 95 % interval of head / base over their common rounds, as a fraction of the ratio.

    The ratio and its interval are those that are reported, but that the interval of a median (`heavy_tailed`) is
    distribution-free here and bootstrapped there. What slows a whole round, a lower clock or a warmer chip, cancels.
    Infinite below 6 rounds: no such interval covers 95 % there.
    """
    common = (number for number in sorted(head.keys() & base.keys()) if base[number] > 0 and head[number] > 0)
    logs = [math.log(head[number] / base[number]) for number in common]
    if len(logs) < FEWEST_ROUNDS:
        return math.inf
    if heavy_tailed(logs):
        (low, high), middle = median_interval(logs), median(logs)
    else:
        low, middle, high = pair_mean_interval(logs)
    return math.exp(high - middle) - math.exp(low - middle)
