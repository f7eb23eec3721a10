"""Exact tests without a noise model: had the rounds come in another order, how often would it look as striking?

Values are replaced by their ranks, so that one wild sample decides nothing. Permutations are seeded and kept.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from harness.analysis.statistics.turns import Floats, Integers

PERMUTATIONS = 4000  # the smallest probability is 1 / 4001
_SEED = 19450801


def trend_probability(values: Floats, by: Floats) -> float:
    """(R,), (R,) -> how often chance makes values depend on `by` as strongly, up or down (Spearman's correlation)."""
    ranks, centred = _ranks(values), by - by.mean()
    return _share_as_extreme(np.abs(ranks[_permutations(len(values))] @ centred), abs(float(ranks @ centred)))


def alike_neighbours_probability(values: Floats) -> float:
    """(R,) -> how often chance makes neighbours as alike: the rank version of von Neumann's ratio (Bartels 1982)."""
    ranks = _ranks(values)
    shuffled = ranks[_permutations(len(values))]
    return _share_as_extreme(-np.sum(np.diff(shuffled, axis=1) ** 2, axis=1), -float(np.sum(np.diff(ranks) ** 2)))


def robust_slope(values: Floats, by: Floats) -> float:
    """(R,), (R,) -> the median of the slopes of all pairs that differ in `by` (Theil 1950, Sen 1968)."""
    first, second = np.triu_indices(len(values), k=1)
    step = by[second] - by[first]
    apart = step != 0
    return float(np.median((values[second] - values[first])[apart] / step[apart])) if apart.any() else 0.0


def _ranks(values: Floats) -> Floats:
    """(R,) mean ranks, centred: equal values get equal ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Floats = (np.cumsum(counts) - (counts + 1) / 2)[inverse]
    centred: Floats = ranks - ranks.mean()
    return centred


def _share_as_extreme(by_chance: Floats, observed: float) -> float:
    # the observed order is one of the possible ones; sums of equal ranks differ in the last bits
    return (1 + int(np.sum(by_chance >= observed - 1e-9))) / (1 + len(by_chance))


@lru_cache(maxsize=64)
def _permutations(length: int) -> Integers:
    """(P, R) orders of R rounds."""
    generator = np.random.default_rng([_SEED, length])
    orders: Integers = generator.permuted(np.tile(np.arange(length), (PERMUTATIONS, 1)), axis=1)
    orders.flags.writeable = False
    return orders
