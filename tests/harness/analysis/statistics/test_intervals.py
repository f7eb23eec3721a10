"""Intervals: reproducible, independent of other rows, and as often right as they say."""

from __future__ import annotations

import numpy as np
import pytest

from harness.analysis.statistics.bootstrap import (
    FEWEST_ROUNDS,
    Interval,
    blocks_of_times,
    expanded_tail,
    median_interval,
    resampled_rounds,
)
from harness.analysis.statistics.error_rates import error_rates, simulated_case
from harness.analysis.statistics.ratio import noise_floor, ratio_interval, time_interval
from harness.analysis.statistics.simulation import (
    BIMODAL,
    EVERYTHING,
    LIKE_H200,
    NOISE_AND_DRIFT,
    POWER_CAP,
    QUIET,
    THROTTLED,
    NoiseModel,
    simulate,
)
from harness.analysis.statistics.turns import arranged, paired
from harness.interval import by_round, heavy_tailed, ratio_width


@pytest.mark.parametrize("rounds", [10, 20, 40])
@pytest.mark.parametrize("model", [QUIET, NOISE_AND_DRIFT, THROTTLED, BIMODAL, EVERYTHING, LIKE_H200, POWER_CAP])
def test_the_interval_of_a_ratio_covers_the_truth_as_often_as_it_says(model: NoiseModel, rounds: int) -> None:
    assert 0.93 <= error_rates(model, rounds, slowdown=0.02, runs=500).coverage <= 0.975


def test_coverage_over_all_noise_models_is_close_to_95_percent() -> None:
    models = (QUIET, NOISE_AND_DRIFT, THROTTLED, BIMODAL, EVERYTHING, LIKE_H200)
    coverage = np.mean([error_rates(model, 20, runs=500).coverage for model in models])
    assert 0.93 <= coverage <= 0.97


def test_the_same_samples_give_the_same_interval_whatever_was_computed_before() -> None:
    turns = simulated_case(NOISE_AND_DRIFT, 20, seed=1).turns
    names = list(turns)
    forward = {name: ratio_interval(turns[name], turns["base"]) for name in names}
    backward = {name: ratio_interval(turns[name], turns["base"]) for name in reversed(names)}
    resampled_rounds.cache_clear()
    assert forward == backward == {name: ratio_interval(turns[name], turns["base"]) for name in names}


def test_another_seed_moves_the_ends_little() -> None:
    ratio = simulated_case(QUIET, 20, seed=1).turns["head"]
    ends = [median_interval(ratio, 1, seed) for seed in range(10)]
    lows, widths = ([getattr(end, name) for end in ends] for name in ("low", "relative_width"))
    assert len(set(lows)) > 1
    assert np.std(lows) / 60 < 0.2 * np.mean(widths)


def test_the_inverse_ratio_has_the_reciprocal_interval() -> None:
    turns = simulated_case(LIKE_H200, 20, seed=3).turns
    one, other = ratio_interval(turns["head"], turns["gemm"]), ratio_interval(turns["gemm"], turns["head"])
    assert one is not None and other is not None
    assert (1 / one.low, 1 / one.estimate, 1 / one.high) == pytest.approx((other.high, other.estimate, other.low))


@pytest.mark.parametrize(("model", "rounds", "of_the_median"), [(POWER_CAP, 20, 0.8), (EVERYTHING, 50, 1.1)])
def test_ratios_are_known_better_than_by_their_median_and_never_much_worse(
    model: NoiseModel, rounds: int, of_the_median: float
) -> None:
    """Mean squares of the error, 300 A/A: most is gained where noise is of one kind, nothing lost where it is not."""
    errors = []
    for seed in range(300):
        turns = simulated_case(model, rounds, seed).turns
        ratio = ratio_interval(turns["head"], turns["base"])
        assert ratio is not None
        errors.append((ratio.estimate - 1, np.median(paired(turns["head"], turns["base"]).values) - 1))
    squares = np.mean(np.square(errors), axis=0)
    assert squares[0] < of_the_median * squares[1]


def test_rounds_end_by_the_interval_that_is_reported() -> None:
    compared = 0
    for seed in range(20):
        turns = simulated_case(POWER_CAP, 20, seed).turns
        ratio = ratio_interval(turns["head"], turns["base"])
        assert ratio is not None
        if not heavy_tailed(paired(turns["head"], turns["base"]).log_medians().tolist()):
            head, base = (by_round(np.repeat(t.rounds, 2), t.values.ravel()) for t in (turns["head"], turns["base"]))
            assert ratio_width(head, base) == pytest.approx(ratio.relative_width, rel=0.02)  # turns: means, not of logs
            compared += 1
    assert compared > 15


def test_shared_drift_cancels_in_a_ratio_and_not_in_a_time() -> None:
    def mean_width(model: NoiseModel) -> tuple[float, float]:
        widths = []
        for seed in range(50):
            turns = simulated_case(model, 20, seed).turns
            time_ms, ratio = time_interval(turns["head"]), ratio_interval(turns["head"], turns["base"])
            assert time_ms is not None and ratio is not None
            widths.append((time_ms.relative_width, ratio.relative_width))
        time_width, ratio_width = np.mean(widths, axis=0)
        return float(time_width), float(ratio_width)

    quiet, drifting = mean_width(QUIET), mean_width(NOISE_AND_DRIFT)
    assert drifting[0] > 10 * quiet[0]
    assert drifting[1] < 2.5 * quiet[1]  # what is left is the drift inside a round


def test_samples_of_a_turn_are_drawn_together() -> None:
    rng = np.random.default_rng(0)
    once = np.exp(0.01 * rng.standard_normal(12))
    twice = arranged("twice", np.repeat(np.arange(12), 2), np.repeat(once, 2))
    single = arranged("once", np.arange(12), once)
    assert time_interval(twice) == time_interval(single)  # a sample said twice tells nothing new


def test_too_few_rounds_have_no_interval() -> None:
    turns = simulated_case(QUIET, FEWEST_ROUNDS, seed=0).turns
    assert ratio_interval(turns["head"], turns["base"]) is not None
    assert ratio_interval(turns["head"].first(FEWEST_ROUNDS - 1), turns["base"]) is None
    assert noise_floor(turns["head"].first(3), turns["base"]) is None


def test_rounds_of_an_interval_are_those_in_common() -> None:
    turns = simulated_case(QUIET, 20, seed=0).turns
    ratio = ratio_interval(turns["head"].first(12), turns["base"])
    assert ratio is not None and ratio.rounds == 12


def test_resamples_are_blocks_of_following_rounds() -> None:
    drawn = resampled_rounds(rounds=10, block=3, resamples=50, seed=0)
    assert drawn.shape == (50, 10)
    steps = np.diff(drawn[:, :9].reshape(50, 3, 3), axis=2) % 10
    assert (steps == 1).all()


def test_blocks_of_times_grow_with_the_cube_root() -> None:
    assert [blocks_of_times(rounds) for rounds in (1, 10, 20, 64)] == [1, 2, 3, 4]


def test_few_blocks_move_the_percentiles_out() -> None:
    assert expanded_tail(1e6) == pytest.approx(0.025, rel=1e-3)
    # Student's quantile for 9 degrees is 2.262; Phi(-2.262 sqrt(10/9)) = 0.00856
    assert expanded_tail(10) == pytest.approx(0.00856, rel=0.02)


def test_the_noise_floor_of_an_a_a_pair() -> None:
    twins = simulate({"first": 50.0, "second": 50.0}, 20, NOISE_AND_DRIFT, seed=5).turns
    floor = noise_floor(twins["first"], twins["second"])
    assert floor is not None
    assert floor.ratio == ratio_interval(twins["second"], twins["first"])
    assert floor.margin == max(floor.ratio.high - 1, 1 / floor.ratio.low - 1)
    assert 0.001 < floor.margin < 0.02


def test_relative_width() -> None:
    assert Interval(estimate=50.0, low=49.0, high=51.5, rounds=10).relative_width == pytest.approx(0.05)
