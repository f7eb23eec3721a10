"""Times, paired ratios and the noise floor, each with its interval."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp

from harness.analysis.statistics.bootstrap import Interval, blocks_of_times, median_interval
from harness.analysis.statistics.turns import Turns, paired
from harness.interval import FEWEST_ROUNDS, heavy_tailed, pair_mean_interval

# What rounds share cancels in a ratio, and a random order makes the rest independent: over the rows of
# reports/gemma2-h200 ratios of following rounds correlate by -0.09, about what 15 independent rounds show.
# Longer blocks only cost coverage (docs/statistics.md).
ROUNDS_TO_A_BLOCK_OF_RATIOS = 1


@dataclass(frozen=True)
class NoiseFloor:
    """What a comparison of something with itself gives."""

    ratio: Interval
    margin: float  # the largest difference from 1 inside the interval, a fraction: no smaller one can be resolved


def time_interval(turns: Turns) -> Interval | None:
    """The median time in ms and its interval; None for too few rounds."""
    return median_interval(turns, blocks_of_times(len(turns.rounds)))


def ratio_interval(head: Turns, base: Turns) -> Interval | None:
    """Head's turn over base's in their common rounds, and its interval; None for too few common rounds.

    Of the logarithms of the rounds' ratios the median of the means of all pairs, with the signed-rank interval; where
    their tails are heavy the median, with the bootstrap's. Exchanging head and base gives reciprocals either way.

    Turns must be of one case and one group of workers: equal round numbers of two groups are other moments.
    """
    ratios = paired(head, base)
    if len(ratios.rounds) < FEWEST_ROUNDS:
        return None
    logs: list[float] = ratios.log_medians().tolist()
    if heavy_tailed(logs):
        return median_interval(ratios, ROUNDS_TO_A_BLOCK_OF_RATIOS)
    low, middle, high = pair_mean_interval(logs)
    return Interval(exp(middle), exp(low), exp(high), len(logs))


def noise_floor(first: Turns, second: Turns) -> NoiseFloor | None:
    """The noise of a run, from two rows of the same implementation; None for too few common rounds.

    Compare its margin with the one that verdicts use: where it is larger, verdicts of this run will be UNSURE.
    """
    ratio = ratio_interval(second, first)
    return None if ratio is None else NoiseFloor(ratio, max(ratio.high - 1, 1 / ratio.low - 1))
