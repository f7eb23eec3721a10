"""The time of head over base, and whether there is such a thing."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, hypot, log

from harness.analysis.statistics.bootstrap import Interval
from harness.analysis.statistics.ratio import noise_floor, ratio_interval
from harness.analysis.statistics.turns import again_turns_of, turns_of
from harness.analysis.statistics.verdict import Verdict, verdict_of
from harness.record import Record


@dataclass(frozen=True)
class TimeRatio:
    """Head over base with its 95 % interval, or why there is none."""

    interval: Interval | None
    paired: bool  # of the same rounds, against the margin of one run; else of two runs, against that across
    refused: str | None = None  # why the two times are not compared, in words
    control: Interval | None = None  # of two workers of the same code in the same rounds: an A/A
    again: TimeRatio | None = None  # measured a second time with new processes

    def unfit(self, margin: float) -> bool:
        """Whether the same code differs from itself by more than the margin, for certain."""
        return self.control is not None and verdict_of(self.control, margin) in (Verdict.SLOWER, Verdict.FASTER)

    def verdict(self, margin: float) -> Verdict:
        """By the rule of `verdict_of`. SLOWER must be found by both where it was measured twice.

        Two processes of the same code may differ for as long as they live, which no number of rounds averages out.
        """
        found = verdict_of(self.interval, margin)
        if self.again is None:
            return found
        second = verdict_of(self.again.interval, margin)
        return second if (found is Verdict.SLOWER) is (second is Verdict.SLOWER) else Verdict.UNSURE


def paired_ratio(base: Record, head: Record, control: Interval | None = None) -> TimeRatio | None:
    """Of two rows of one run, round by round; None if one was not timed."""
    base_turns, head_turns = turns_of(base), turns_of(head)
    if base_turns is None or head_turns is None:
        return None
    if base.gemm_ms != head.gemm_ms:  # equal round numbers of two groups are other moments
        return TimeRatio(None, True, refused="base and head did not play the same rounds: no room for both at once")
    return TimeRatio(ratio_interval(head_turns, base_turns), True, control=control)


def control_of(record: Record) -> Interval | None:
    """The ratio of the row's second worker to its first, where it has one."""
    first, second = turns_of(record), again_turns_of(record)
    noise = noise_floor(first, second) if first is not None and second is not None else None
    return noise.ratio if noise is not None else None


def quotient(head: Interval, base: Interval) -> Interval:
    """Head over base, of two estimates that know nothing of each other: half-widths add in quadrature, in logarithms.

    The interval is as good as the two are; what neither run saw, another day or another card, it leaves out.
    """
    estimate = log(head.estimate / base.estimate)
    low = estimate - hypot(log(head.estimate / head.low), log(base.high / base.estimate))
    high = estimate + hypot(log(head.high / head.estimate), log(base.estimate / base.low))
    return Interval(exp(estimate), exp(low), exp(high), min(head.rounds, base.rounds))


def is_timed(record: Record | None) -> bool:
    """Whether there are samples of it, however few."""
    return record is not None and record.times is not None and bool(record.times.fwd_bwd_ms)


def without_ratio(base: bool, head: bool) -> TimeRatio | None:
    """Of two runs: why a row that was timed, in base or in head, is not compared; None if it was timed in neither."""
    if not base and not head:
        return None
    missing = "base" if not base else "head"
    few = "too few rounds for a ratio to the GEMM, or no GEMM to share"
    return TimeRatio(None, False, refused=few if base and head else f"{missing} has no time of it")
