"""The interval that decides when enough samples are in."""

from __future__ import annotations

import math
import random

import pytest

from harness.interval import by_round, median_interval, ratio_width, relative_width


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


def test_the_turns_of_a_round_are_its_medians() -> None:
    assert by_round([0, 0, 0, 3, 3, 3], [1.0, 9.0, 2.0, 4.0, 5.0, 6.0]) == {0: 2.0, 3: 5.0}


def test_the_width_of_a_ratio_knows_no_drift_and_takes_common_rounds_alone() -> None:
    clock = {number: 1 + 0.1 * (number % 5) for number in range(20)}
    head = {number: 3.0 * slowness for number, slowness in clock.items()}
    assert ratio_width(head, clock) == pytest.approx(0)
    assert relative_width(list(head.values())) > 0.1
    noisy = {number: slowness * (1.05 if number % 2 else 1.0) for number, slowness in clock.items()}
    assert ratio_width(noisy, clock) > 0.04
    assert ratio_width(noisy | {number: 50.0 for number in range(20, 40)}, clock) == ratio_width(noisy, clock)


def test_five_common_rounds_say_nothing() -> None:
    base = {number: 1.0 for number in range(20)}
    assert ratio_width({number: 1.0 for number in range(5)}, base) == math.inf
    assert ratio_width({number: 1.0 for number in range(6)}, base) == 0
