"""Planted drift, order bias, throttling and clock states are found; clean runs are left alone. Rates over 200 runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from harness.analysis.statistics.bootstrap import Interval
from harness.analysis.statistics.detection import Finding, Kind, bimodality, drift, order_bias, too_wide
from harness.analysis.statistics.error_rates import simulated_case
from harness.analysis.statistics.permutation import alike_neighbours_probability, robust_slope, trend_probability
from harness.analysis.statistics.simulation import LIKE_H200, NOISE_AND_DRIFT, QUIET, NoiseModel, SimulatedRun
from harness.analysis.statistics.throttling import throttling
from harness.analysis.statistics.turns import Turns, paired

RUNS = 200
Look = Callable[[SimulatedRun], Finding | None]


def _drift(run: SimulatedRun) -> Finding | None:
    return drift(run.turns["head"])


def _drift_of_the_gemm(run: SimulatedRun) -> Finding | None:
    return drift(run.turns["gemm"])


def _order_bias(run: SimulatedRun) -> Finding | None:
    return order_bias(paired(run.turns["head"], run.turns["gemm"]), run.positions["head"].tolist())


def _bimodality(run: SimulatedRun) -> Finding | None:
    return bimodality(run.turns["head"])


def _throttling(run: SimulatedRun) -> Finding | None:
    return throttling("head", run.times("head"))


def _rate(look: Look, model: NoiseModel, rounds: int) -> float:
    return sum(look(simulated_case(model, rounds, seed)) is not None for seed in range(RUNS)) / RUNS


@pytest.mark.parametrize("look", [_drift, _drift_of_the_gemm, _order_bias, _bimodality, _throttling])
@pytest.mark.parametrize("model", [QUIET, LIKE_H200])
@pytest.mark.parametrize("rounds", [10, 20])
def test_clean_runs_are_left_alone(look: Look, model: NoiseModel, rounds: int) -> None:
    assert _rate(look, model, rounds) <= 0.025


@pytest.mark.parametrize(
    ("look", "model", "rounds", "at_least"),
    [
        (_drift, NOISE_AND_DRIFT, 10, 0.95),
        (_drift, NOISE_AND_DRIFT, 20, 0.99),
        (_drift_of_the_gemm, NOISE_AND_DRIFT, 20, 0.99),
        (_order_bias, replace(QUIET, order_bias=0.02), 30, 0.95),
        (_order_bias, replace(NOISE_AND_DRIFT, order_bias=0.03), 40, 0.95),  # the ratio frees it from the drift
        (_bimodality, replace(QUIET, bimodal_gap=0.06), 20, 0.95),
    ],
)
def test_what_was_planted_is_found(look: Look, model: NoiseModel, rounds: int, at_least: float) -> None:
    assert _rate(look, model, rounds) >= at_least


def test_shared_drift_leaves_no_drift_in_a_ratio() -> None:
    found = [drift(paired(run.turns["head"], run.turns["gemm"])) for run in _runs(NOISE_AND_DRIFT, 20)]
    assert sum(finding is not None for finding in found) / RUNS <= 0.025


def test_throttling_is_found_whenever_the_row_was_throttled() -> None:
    runs = list(_runs(replace(QUIET, throttle_step=0.1), 20))
    throttled = [bool(run.throttled["head"].any()) for run in runs]
    assert [_throttling(run) is not None for run in runs] == throttled
    assert sum(throttled) > 0.9 * RUNS  # a step at the very end may hit no turn of the row


def test_drift_says_how_far_and_where_to() -> None:
    times_ms = (
        50 * np.linspace(1, 1.08, 20)[:, None] * np.exp(0.002 * np.random.default_rng(0).standard_normal((20, 2)))
    )
    found = drift(Turns("ours", np.arange(20), times_ms))
    assert found is not None and (found.kind, found.row) == (Kind.DRIFT, "ours")
    assert found.size == pytest.approx(0.08, abs=0.01)
    assert found.sentence.startswith("drifted by +") and found.sentence.endswith("from the first round to the last")


def test_a_wandering_without_trend_is_drift_too() -> None:
    times_ms = 50 * (1 + 0.05 * np.cos(2 * np.pi * np.arange(20) / 20))[:, None]
    found = drift(Turns("ours", np.arange(20), times_ms))
    assert found is not None and "wandered" in found.sentence


def test_a_significant_drift_that_moves_nothing_is_not_mentioned() -> None:
    assert drift(Turns("ours", np.arange(20), np.linspace(50, 50.1, 20)[:, None])) is None


def test_order_bias_needs_a_place_for_every_turn() -> None:
    run = simulated_case(replace(QUIET, order_bias=0.05), 20, seed=0)
    places = run.positions["head"].tolist()
    assert order_bias(run.turns["head"], None) is None
    found = order_bias(run.turns["head"], places)
    assert found is not None and "slower late in a round than early" in found.sentence
    assert found.size == pytest.approx(0.05, abs=0.01)
    with pytest.raises(ValueError, match="one a round, given 19 for 20"):
        order_bias(run.turns["head"], places[1:])


def test_two_clock_states_say_how_far_apart() -> None:
    times_ms = np.array([50.0, 50.2, 53.0, 50.1, 53.1, 53.2, 49.9, 50.0, 53.1, 50.1])[:, None]
    found = bimodality(Turns("ours", np.arange(10), times_ms))
    assert found is not None and found.size == pytest.approx(53.1 / 50.05 - 1, rel=0.02)
    assert found.sentence.endswith("40 % in the slower one")


def test_one_wild_sample_is_no_second_state() -> None:
    assert bimodality(Turns("ours", np.arange(10), np.array([50.0] * 9 + [70.0])[:, None])) is None


def test_a_steady_power_limit_is_no_finding_and_a_changing_one_is() -> None:
    steady = simulated_case(QUIET, 10, seed=0).times("head").model_copy(update={"throttle_reasons": [4] * 20})
    assert throttling("head", steady) is None
    changing = throttling("head", steady.model_copy(update={"throttle_reasons": [4] * 10 + [0] * 10}))
    assert changing is not None and changing.sentence == "at the power limit in 50 % of its samples, not in the others"


def test_the_reason_of_throttling_is_named() -> None:
    times = simulated_case(QUIET, 10, seed=0).times("head")
    found = throttling("head", times.model_copy(update={"throttle_reasons": [4] * 15 + [4 | 32] * 5}))
    assert found is not None and found.sentence == "throttled (sw thermal) in 25 % of its samples"


def test_a_clock_that_falls_without_a_reason() -> None:
    times = simulated_case(QUIET, 10, seed=0).times("head")
    found = throttling("head", times.model_copy(update={"sm_clock_mhz": [1980] * 15 + [1500] * 5}))
    assert found is not None and found.sentence == "SM clock down to 1500 MHz, median 1980 MHz; NVML gives no reason"
    assert throttling("head", times.model_copy(update={"sm_clock_mhz": [], "throttle_reasons": []})) is None


def test_too_wide() -> None:
    wide = Interval(estimate=50.0, low=49.0, high=51.0, rounds=10)
    found = too_wide("ours", wide, 0.02)
    assert found is not None and found.sentence == "95 % interval 4 % wide after 10 rounds, wanted 2 %"
    assert too_wide("ours", wide, 0.04) is None
    assert too_wide("ours", None, 0.02) is None


def test_fewer_rounds_than_can_tell_anything() -> None:
    run = simulated_case(NoiseModel(drift=0.5, bimodal_gap=0.5, order_bias=0.5), 5, seed=0)
    assert _drift(run) is _order_bias(run) is _bimodality(run) is None


def test_probabilities_under_chance_are_uniform() -> None:
    dice = np.random.default_rng(1)
    samples = [dice.standard_normal(15) for _ in range(400)]
    places = np.arange(15) % 4.0  # places in a round repeat
    for probabilities in (
        [trend_probability(values, places) for values in samples],
        [alike_neighbours_probability(values) for values in samples],
    ):
        assert np.quantile(probabilities, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.08)


def test_the_slope_ignores_a_wild_sample() -> None:
    line = 3 + 0.5 * np.arange(11.0)
    line[4] = 1000
    assert robust_slope(line, np.arange(11.0)) == pytest.approx(0.5)
    assert robust_slope(np.array([1.0, 2.0]), np.array([1.0, 1.0])) == 0


def _runs(model: NoiseModel, rounds: int) -> list[SimulatedRun]:
    return [simulated_case(model, rounds, seed) for seed in range(RUNS)]
