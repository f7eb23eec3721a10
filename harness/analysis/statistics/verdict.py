"""Faster, slower, the same, or not known: an interval against a margin."""

from __future__ import annotations

from enum import StrEnum

from harness.analysis.statistics.bootstrap import Interval
from harness.analysis.statistics.ratio import ratio_interval
from harness.analysis.statistics.turns import Turns

MARGIN = 0.01  # what is called a change, as a fraction of the time


class Verdict(StrEnum):
    """How head compares with base."""

    FASTER = "faster"
    SLOWER = "slower"
    SAME = "same"
    UNSURE = "unsure"  # never read as SAME: more rounds may tell


def verdict(base: Turns, head: Turns, margin: float = MARGIN) -> Verdict:
    """The verdict on head's time over base's, from their common rounds by the rule of `verdict_of`."""
    return verdict_of(ratio_interval(head, base), margin)


def verdict_of(ratio: Interval | None, margin: float = MARGIN) -> Verdict:
    """The rule, for the 95 % interval [low, high] of head / base and a margin m:

    - SLOWER if low > 1 + m: the whole interval lies above the margin
    - FASTER if high < 1 / (1 + m): the whole interval lies below it
    - SAME if 1 / (1 + m) <= low and high <= 1 + m: the whole interval lies within it
    - UNSURE otherwise: the interval contains an end of the margin, or there is none (too few rounds)

    Exchanging base and head exchanges FASTER and SLOWER. A true change of exactly m is mostly UNSURE, however many
    rounds; one of 2 m is not. Raises ValueError for a margin that is not positive.
    """
    if not margin > 0:
        raise ValueError(f"margin must be positive, given {margin}: nothing is the same to the last digit")
    if ratio is None:
        return Verdict.UNSURE
    if ratio.low > 1 + margin:
        return Verdict.SLOWER
    if ratio.high < 1 / (1 + margin):
        return Verdict.FASTER
    if ratio.low >= 1 / (1 + margin) and ratio.high <= 1 + margin:
        return Verdict.SAME
    return Verdict.UNSURE
