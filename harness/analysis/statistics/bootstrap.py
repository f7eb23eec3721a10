"""Medians with 95 % intervals by a block bootstrap over rounds.

A round is drawn with all its samples: samples of one turn share the power state that their kernel found, and are worth
less than as many independent ones. Rounds that follow each other may be alike too, so they are drawn in blocks, runs of
consecutive rounds that wrap around the end (the circular block bootstrap: Politis and Romano 1992, after Künsch 1989).

The interval lies between percentiles of the resampled medians (Efron 1979), taken further out than 2.5 and 97.5: plain
percentiles are too narrow for few rounds, as if Student's t were the normal distribution and the variance divided by n
instead of n - 1 (Hesterberg 2015, The American Statistician 69, "expanded percentile"). n counts blocks, not rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from statistics import NormalDist

import numpy as np

from harness.analysis.statistics.turns import Floats, Integers, Turns
from harness.interval import FEWEST_ROUNDS

CONFIDENCE = 0.95
RESAMPLES = 2000
SEED = 20240229  # any number; the same for all rows, so that no interval depends on which row came first


@dataclass(frozen=True)
class Interval:
    """An estimate and where the truth lies with 95 % confidence, in the unit of the values (ms, or a ratio)."""

    estimate: float
    low: float
    high: float
    rounds: int  # that it rests on; for a ratio those that both rows played

    @property
    def relative_width(self) -> float:
        """Width over estimate, a fraction."""
        return (self.high - self.low) / self.estimate


def median_interval(turns: Turns, block: int, seed: int = SEED) -> Interval | None:
    """The median over all samples and its interval, from blocks of `block` rounds.

    None below FEWEST_ROUNDS, and where fewer than 3 blocks fit: no interval would be honest. Computed on logarithms, so
    that the interval of a ratio is the reciprocal of that of the inverse ratio.
    """
    rounds = len(turns.rounds)
    if rounds < max(FEWEST_ROUNDS, 3 * block):
        return None
    logs = np.log(turns.values)
    drawn = logs[resampled_rounds(rounds, block, RESAMPLES, seed)]  # (B, R, S)
    medians: Floats = np.median(drawn.reshape(RESAMPLES, -1), axis=1)
    tail = expanded_tail(rounds / block)
    low, high = np.quantile(medians, [tail, 1 - tail])
    low, estimate, high = (float(np.exp(value)) for value in (low, np.median(logs), high))
    # few rounds in two clusters: resampling can miss the side that the median itself lies on
    return Interval(estimate, min(low, estimate), max(high, estimate), rounds)


def blocks_of_times(rounds: int) -> int:
    """Rounds to a block for times, which drift from round to round: the usual cube root."""
    return max(1, round(float(np.cbrt(rounds))))


def expanded_tail(blocks: float) -> float:
    """The share of resampled medians left out on either side: 2.5 % for very many blocks, 0.9 % for ten."""
    z, degrees = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2), blocks - 1
    # Student's quantile by its expansion in 1/degrees (Abramowitz and Stegun 26.7.5), 2 % low at 4 degrees
    t = z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    return NormalDist().cdf(-t * sqrt(blocks / degrees))


@lru_cache(maxsize=64)
def resampled_rounds(rounds: int, block: int, resamples: int, seed: int) -> Integers:
    """(B, R) indices of rounds, B resamples of R rounds in blocks. Kept, for every row of a case needs the same."""
    generator = np.random.default_rng([seed, rounds, block])
    starts = generator.integers(rounds, size=(resamples, -(-rounds // block), 1))
    indices: Integers = ((starts + np.arange(block)) % rounds).reshape(resamples, -1)[:, :rounds]
    indices.flags.writeable = False
    return indices
