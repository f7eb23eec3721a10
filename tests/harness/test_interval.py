"""The intervals that decide when enough samples are in, and by which ratios are read."""

from __future__ import annotations

import math
import random
from statistics import fmean, median, pvariance

import pytest

from harness.interval import (
    by_round,
    heavy_tailed,
    median_interval,
    pair_mean_interval,
    ratio_width,
    relative_width,
)


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


@pytest.mark.parametrize(("n", "left_out"), [(6, 0), (7, 2), (8, 3), (10, 8), (20, 52), (40, 264)])
def test_the_interval_of_pair_means_lies_where_the_signed_rank_table_says(n: int, left_out: int) -> None:
    """Wilcoxon's table: the largest sum of ranks that is significant at 5 %, two-sided."""
    values = [2.0**number for number in range(n)]  # no two pairs have one mean
    means = sorted((values[i] + values[j]) / 2 for i in range(n) for j in range(i, n))
    assert pair_mean_interval(values) == (means[left_out], median(means), means[-1 - left_out])


def _mixed(dice: random.Random) -> float:
    """Noise of two sizes, each round's its own, about 0."""
    return dice.gauss(0, dice.choice((1, 3)))


@pytest.mark.parametrize("n", [6, 10, 20, 40])
def test_pair_means_cover_the_truth_and_are_worth_more_than_the_median(n: int) -> None:
    dice = random.Random(n)
    runs = [[_mixed(dice) for _ in range(n)] for _ in range(1500)]
    found = [pair_mean_interval(values) for values in runs]
    assert sum(low <= 0.0 <= high for low, _, high in found) / len(runs) >= 0.94
    assert all(low <= middle <= high for low, middle, high in found)
    normal = [[dice.gauss(0, 1) for _ in range(n)] for _ in range(1500)]
    pairs, medians, means = (
        pvariance([estimate(values) for values in normal]) for estimate in (_of_pairs, median, fmean)
    )
    assert pairs < 0.9 * medians
    assert pairs < 1.1 * means


def _of_pairs(values: list[float]) -> float:
    return pair_mean_interval(values)[1]


def test_a_quarter_of_wild_values_cannot_carry_the_pair_means_off() -> None:
    dice = random.Random(3)
    values = [dice.gauss(0, 1) for _ in range(20)]
    assert _of_pairs([*values[:15], *[1e6] * 5]) < 2
    assert _of_pairs([*values[:15], *[-1e6] * 5]) > -2


def test_the_other_sign_gives_the_other_interval() -> None:
    dice = random.Random(4)
    for _ in range(200):
        values = [dice.gauss(0, 1) ** 3 for _ in range(11)]
        low, middle, high = pair_mean_interval(values)
        assert pair_mean_interval([-value for value in values]) == pytest.approx((-high, -middle, -low))
        assert heavy_tailed(values) is heavy_tailed([-value for value in values])


@pytest.mark.parametrize("n", [6, 10, 20, 50])
def test_noise_of_one_kind_has_light_tails(n: int) -> None:
    dice = random.Random(n)
    heavy = [heavy_tailed([dice.gauss(0.3, 0.01) for _ in range(n)]) for _ in range(3000)]
    assert 0.04 < sum(heavy) / len(heavy) < 0.09


@pytest.mark.parametrize(("n", "at_least"), [(10, 0.7), (20, 0.95), (50, 0.99)])
def test_rounds_in_which_the_clock_changed_make_heavy_tails(n: int, at_least: float) -> None:
    """A fifth of the rounds is 6 % off, up or down."""
    dice = random.Random(n)
    jumps = (0.06, -0.06, *[0.0] * 8)
    heavy = [heavy_tailed([dice.gauss(dice.choice(jumps), 0.007) for _ in range(n)]) for _ in range(1000)]
    assert sum(heavy) / len(heavy) > at_least


def test_values_without_spread_have_light_tails() -> None:
    assert not heavy_tailed([0.25] * 10)
    assert heavy_tailed([*[0.25] * 9, 1.0])


def test_wild_rounds_leave_the_width_of_a_ratio_to_the_median() -> None:
    dice = random.Random(5)
    base = {number: 1.0 for number in range(20)}
    calm = {number: 2.0 * math.exp(dice.gauss(0, 0.01)) for number in range(20)}
    low, middle, high = pair_mean_interval([math.log(value) for value in calm.values()])
    assert ratio_width(calm, base) == pytest.approx((math.exp(high) - math.exp(low)) / math.exp(middle))
    wild = calm | {number: 2.0 * math.exp(0.06 * (-1) ** number) for number in range(6)}
    assert ratio_width(wild, base) == pytest.approx(relative_width(list(wild.values())), rel=0.02)


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
