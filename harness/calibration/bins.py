"""Predictions in bins of confidence, and the calibration errors that follow from the bins alone. No torch here.

With count_b predictions in bin b, conf_b the mean of their confidences and acc_b the share that was right:

    ECE = sum_b count_b / N * |acc_b - conf_b|               (the paper's Eq. 2; Naeini et al. 2015, Guo et al. 2017)
    RMS = sqrt(sum_b count_b / N * (acc_b - conf_b)**2)      (Hendrycks et al. 2019; Kumar et al. 2019)
    MCE = max_b |acc_b - conf_b|                             (Naeini et al. 2015)

On the same bins ECE <= RMS <= MCE. With bins of equal mass the first is the top-label adaptive error (ACE).
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Bins:
    """B bins of confidence, in ascending order; also the data of a reliability diagram."""

    edges: tuple[float, ...]  # B + 1; of equal mass: the confidences at the cuts
    counts: tuple[int, ...]  # B, predictions
    confidence_sums: tuple[float, ...]  # B
    correct_sums: tuple[float, ...]  # B; fractions where equal confidences lie on both sides of a cut
    variance_sums: tuple[float, ...]  # B, of c * (1 - c): the variance of correct_sums were all confidences true

    def __post_init__(self) -> None:
        lengths = (
            len(self.edges) - 1,
            *map(len, (self.counts, self.confidence_sums, self.correct_sums, self.variance_sums)),
        )
        if len(set(lengths)) != 1 or lengths[0] < 1:
            raise ValueError(f"edges must be one more than counts and sums, at least 2; lengths less one: {lengths}")
        if not sum(self.counts):
            raise ValueError("counts are all 0: there is no calibration of no predictions")

    @property
    def total(self) -> int:
        """Predictions in all bins."""
        return sum(self.counts)

    @property
    def mean_confidence(self) -> tuple[float | None, ...]:
        """(B,) conf_b; None where a bin is empty."""
        return tuple(s / n if n else None for s, n in zip(self.confidence_sums, self.counts, strict=True))

    @property
    def accuracy(self) -> tuple[float | None, ...]:
        """(B,) acc_b; None where a bin is empty."""
        return tuple(s / n if n else None for s, n in zip(self.correct_sums, self.counts, strict=True))


def expected_calibration_error(bins: Bins) -> float:
    """ECE, in 0..1: the paper's Eq. 2 on these bins."""
    return math.fsum(abs(gap) for gap in _gap_sums(bins)) / bins.total


def root_mean_square_calibration_error(bins: Bins) -> float:
    """RMS calibration error, in 0..1; never below `expected_calibration_error` of the same bins (Jensen)."""
    squares = (gap**2 / n for gap, n in zip(_gap_sums(bins), bins.counts, strict=True) if n)
    return math.sqrt(math.fsum(squares) / bins.total)


def maximum_calibration_error(bins: Bins) -> float:
    """MCE, in 0..1: the largest gap of any bin that is not empty, however few predictions it holds."""
    return max(abs(gap) / n for gap, n in zip(_gap_sums(bins), bins.counts, strict=True) if n)


def mean_overconfidence(bins: Bins) -> float:
    """Mean confidence minus accuracy, signed: positive where the model claims too much. |.| is a lower bound of ECE."""
    return -math.fsum(_gap_sums(bins)) / bins.total


def sampling_floor(bins: Bins) -> float:
    """The ECE to expect of these predictions if every confidence were exactly true: sampling noise alone.

    Then correct_sums of a bin is a sum of independent coin flips of variance v_b = sum c (1 - c) around its
    confidence_sums, and E|normal of variance v| = sqrt(2 v / pi). Good where v_b is above about 1; below it overstates.
    An ECE near this number says nothing about the model. It is no correction: floor and true error do not add up.
    """
    return math.fsum(math.sqrt(2 * v / math.pi) for v in bins.variance_sums) / bins.total


def _gap_sums(bins: Bins) -> tuple[float, ...]:
    """(B,) count_b * (acc_b - conf_b)."""
    return tuple(right - sure for right, sure in zip(bins.correct_sums, bins.confidence_sums, strict=True))
