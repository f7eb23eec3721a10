"""Times, paired ratios and the noise floor, each with its interval."""

from __future__ import annotations

from dataclasses import dataclass

from harness.analysis.statistics.bootstrap import Interval, blocks_of_times, median_interval
from harness.analysis.statistics.turns import Turns, paired

# What rounds share cancels in a ratio, and a random order makes the rest independent: over the rows of
# reports/gemma2-h200 ratios of following rounds correlate by -0.08, about what 10 independent rounds show.
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
    """The median over common rounds of head's turn over base's, and its interval; None for too few common rounds.

    Turns must be of one case and one group of workers: equal round numbers of two groups are other moments.
    """
    return median_interval(paired(head, base), ROUNDS_TO_A_BLOCK_OF_RATIOS)


def noise_floor(first: Turns, second: Turns) -> NoiseFloor | None:
    """The noise of a run, from two rows of the same implementation; None for too few common rounds.

    Compare its margin with the one that verdicts use: where it is larger, verdicts of this run will be UNSURE.
    """
    ratio = ratio_interval(second, first)
    return None if ratio is None else NoiseFloor(ratio, max(ratio.high - 1, 1 / ratio.low - 1))
