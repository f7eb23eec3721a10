"""The interval that decides when enough samples are in."""

from __future__ import annotations

import random

import pytest

from harness.interval import median_interval, relative_width


def test_known_ranks() -> None:
    # n = 20: the binomial tails of ranks 6 and 15 weigh 2 * 0.0207, those of 7 and 14 more than 5 %
    assert median_interval(list(range(1, 21))) == (6, 15)


def test_few_samples_give_the_range() -> None:
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
    assert median_interval([5.0]) == (5.0, 5.0)


@pytest.mark.parametrize("n", [20, 25, 60])
def test_it_covers_the_median_as_often_as_it_says(n: int) -> None:
    dice = random.Random(n)
    hits = sum(
        low <= 0.0 <= high for low, high in (median_interval([dice.gauss(0, 1) for _ in range(n)]) for _ in range(2000))
    )
    assert hits / 2000 >= 0.945


def test_relative_width() -> None:
    assert relative_width([10.0] * 20) == 0
    assert relative_width(list(range(100, 120))) == pytest.approx(9 / 110)
