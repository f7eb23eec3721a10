"""Signs that a measurement went wrong, each with a sentence for a footnote.

Every function returns None where there is nothing to say, and where there are too few rounds to say it. Rates of false
and missed findings are measured on the simulated clock: docs/statistics.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from harness.analysis.formats import percent
from harness.analysis.statistics.bootstrap import Interval
from harness.analysis.statistics.permutation import alike_neighbours_probability, robust_slope, trend_probability
from harness.analysis.statistics.turns import Turns
from harness.interval import FEWEST_ROUNDS

SMALLEST_EFFECT = 0.01  # what is smaller moves no verdict, however significant
_CHANCE = 0.005  # of a finding in a clean run, for each test


class Kind(StrEnum):
    """What was found."""

    TOO_WIDE = "too wide"
    DRIFT = "drift"
    ORDER_BIAS = "order bias"
    THROTTLING = "throttling"
    BIMODALITY = "bimodality"
    ALLOCATION = "allocation"


@dataclass(frozen=True)
class Finding:
    """One sign, about one row."""

    kind: Kind
    row: str
    size: float  # a fraction: of the time, or of the samples for throttling and allocation
    sentence: str  # for a footnote; lower case, without a full stop


def too_wide(row: str, interval: Interval | None, target_interval: float) -> Finding | None:
    """An interval wider than the suite's target, both as fractions of the estimate; None without an interval."""
    if interval is None or interval.relative_width <= target_interval:
        return None
    width = interval.relative_width
    words = f"95 % interval {percent(width)} wide after {interval.rounds} rounds, wanted {percent(target_interval)}"
    return Finding(Kind.TOO_WIDE, row, width, words)


def drift(turns: Turns) -> Finding | None:
    """A trend of turn medians over the rounds, or a slow wandering: neighbours more alike than chance allows.

    Of a row's times it warns that the median depends on when it was taken; ratios hardly suffer. Of a ratio it says
    that something changed which the rows do not share.
    """
    logs, rounds = turns.log_medians(), turns.rounds.astype(np.float64)
    if len(rounds) < FEWEST_ROUNDS:
        return None
    change = float(np.expm1(robust_slope(logs, rounds) * (rounds[-1] - rounds[0])))
    if abs(change) >= SMALLEST_EFFECT and trend_probability(logs, rounds) < _CHANCE:
        words = f"drifted by {'+' if change > 0 else ''}{percent(change)} from the first round to the last"
        return Finding(Kind.DRIFT, turns.name, abs(change), words)
    spread = float(np.expm1(np.subtract(*np.quantile(logs, [0.9, 0.1]))))
    if spread >= SMALLEST_EFFECT and alike_neighbours_probability(logs) < _CHANCE:
        words = f"wandered over the rounds, by {percent(spread)} between its slow and its fast ones"
        return Finding(Kind.DRIFT, turns.name, spread, words)
    return None


def order_bias(turns: Turns, positions: Sequence[int] | None) -> Finding | None:
    """A dependence on the place in the round. Best asked of ratios to the GEMM, from which the drift has cancelled.

    `positions` has the place of each turn, 0 for the first of the round; None where they were not recorded. Raises
    ValueError if they are not one a round.
    """
    if positions is None or len(turns.rounds) < FEWEST_ROUNDS:
        return None
    if len(positions) != len(turns.rounds):
        raise ValueError(f"{turns.name}: positions must be one a round, given {len(positions)} for {len(turns.rounds)}")
    places, logs = np.asarray(positions, dtype=np.float64), turns.log_medians()
    change = float(np.expm1(robust_slope(logs, places) * np.ptp(places)))
    if abs(change) < SMALLEST_EFFECT or trend_probability(logs, places) >= _CHANCE:
        return None
    words = f"{percent(abs(change))} {'slower' if change > 0 else 'faster'} late in a round than early"
    return Finding(Kind.ORDER_BIAS, turns.name, abs(change), words)


def bimodality(turns: Turns) -> Finding | None:
    """Samples in two groups with a gap much wider than the spread inside either: two states of the clock, say.

    The groups are those on either side of the widest gap that leaves a tenth of the samples, and at least 3, on both.
    The gap must be 3 times the larger standard deviation inside: 20 normal samples never show that.
    """
    logs = np.sort(np.log(turns.values).ravel())
    fewest = max(3, -(-len(logs) // 10))
    if len(turns.rounds) < FEWEST_ROUNDS:
        return None
    gaps = np.diff(logs)[fewest - 1 : len(logs) - fewest]
    split = int(np.argmax(gaps)) + fewest
    low, high = logs[:split], logs[split:]
    gap, inside = float(gaps.max()), float(max(low.std(ddof=1), high.std(ddof=1)))
    if gap < 3 * inside or gap < SMALLEST_EFFECT:
        return None
    apart = float(np.expm1(np.median(high) - np.median(low)))
    share = percent(round(len(high) / len(logs), 2))
    return Finding(Kind.BIMODALITY, turns.name, apart, f"two groups {percent(apart)} apart, {share} in the slower one")


def allocation(row: str, device_allocations: Sequence[int]) -> Finding | None:
    """Samples in which the allocator asked the device for memory, which takes time and waits for the GPU."""
    asking = sum(count > 0 for count in device_allocations)
    if not asking:
        return None
    words = f"in {asking} of {len(device_allocations)} samples, {sum(device_allocations)} times"
    return Finding(Kind.ALLOCATION, row, asking / len(device_allocations), words)
