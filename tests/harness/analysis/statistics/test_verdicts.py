"""The rule, and how often it errs on the simulated clock: margin 1 %, 0.5 % noise, 8 % shared drift, and worse."""

from __future__ import annotations

import pytest

from harness.analysis.statistics.bootstrap import Interval
from harness.analysis.statistics.error_rates import (
    error_rates,
    extended_error_rates,
    simulated_case,
    stopped_error_rates,
)
from harness.analysis.statistics.simulation import (
    BIMODAL,
    EVERYTHING,
    LIKE_H200,
    NOISE_AND_DRIFT,
    QUIET,
    THROTTLED,
    NoiseModel,
    rounds_when_narrow,
    verdict_when_sure,
)
from harness.analysis.statistics.verdict import Verdict, verdict, verdict_of

pytestmark = pytest.mark.takes_s(30)


def _interval(low: float, high: float) -> Interval:
    return Interval(estimate=(low + high) / 2, low=low, high=high, rounds=20)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1.011, 1.03, Verdict.SLOWER),
        (1.010, 1.03, Verdict.UNSURE),  # touches the margin
        (0.97, 0.990, Verdict.FASTER),
        (0.97, 0.9905, Verdict.UNSURE),  # above 1 / 1.01
        (0.991, 1.01, Verdict.SAME),
        (1.005, 1.009, Verdict.SAME),  # certainly slower, and by less than anyone cares for
        (0.98, 1.02, Verdict.UNSURE),
        (0.99, 1.0, Verdict.UNSURE),
    ],
)
def test_the_rule(low: float, high: float, expected: Verdict) -> None:
    assert verdict_of(_interval(low, high), margin=0.01) is expected


def test_without_an_interval_nothing_is_sure() -> None:
    assert verdict_of(None) is Verdict.UNSURE


def test_a_margin_must_be_positive() -> None:
    with pytest.raises(ValueError, match="margin must be positive, given 0"):
        verdict_of(_interval(1, 1), margin=0)


def test_exchanging_the_rows_exchanges_the_verdict() -> None:
    turns = simulated_case(QUIET, 20, seed=0, slowdown=0.03).turns
    assert verdict(turns["base"], turns["head"]) is Verdict.SLOWER
    assert verdict(turns["head"], turns["base"]) is Verdict.FASTER
    assert verdict(turns["base"], turns["head"], margin=0.05) is Verdict.SAME


@pytest.mark.parametrize(("model", "rounds"), [(NOISE_AND_DRIFT, 25), (EVERYTHING, 50)])
def test_an_a_a_raises_no_alarm_and_a_slowdown_of_2_percent_is_found(model: NoiseModel, rounds: int) -> None:
    assert error_rates(model, rounds, runs=1000).false_alarms < 0.01
    assert error_rates(model, rounds, slowdown=0.02, runs=500).verdicts[Verdict.SLOWER] >= 0.95


@pytest.mark.parametrize("model", [NOISE_AND_DRIFT, THROTTLED, BIMODAL, EVERYTHING])
def test_when_a_run_stops_for_narrow_ratios_its_verdicts_hold(model: NoiseModel) -> None:
    """The noise model of docs/statistics.md, margin 1 %, the rule by which `harness.running.rounds` lets rows rest."""
    same, slower = stopped_error_rates(model), stopped_error_rates(model, slowdown=0.02)
    assert same.runs == slower.runs == 1000
    assert same.false_alarms < 0.01
    assert slower.verdicts[Verdict.SLOWER] >= 0.95
    assert slower.verdicts[Verdict.SAME] + slower.verdicts[Verdict.FASTER] < 0.01
    assert min(same.coverage, slower.coverage) >= 0.91  # stopping at a lucky moment costs two or three of the 95 %
    assert same.mean_rounds < 50


def test_rows_rest_once_their_ratio_is_known() -> None:
    turns = simulated_case(QUIET, 40, seed=0).turns
    assert rounds_when_narrow(turns["base"], turns["head"], target=0.05) == 10
    assert rounds_when_narrow(turns["base"], turns["head"], target=1e-6) == 40
    noisy = simulated_case(LIKE_H200, 40, seed=0).turns
    stopped = [rounds_when_narrow(noisy["base"], noisy["head"], target) for target in (0.05, 0.03, 0.02)]
    assert 10 <= stopped[0] < stopped[1] < stopped[2]


@pytest.mark.parametrize("model", [NOISE_AND_DRIFT, EVERYTHING])
def test_more_rounds_while_unsure(model: NoiseModel) -> None:
    same, slower = extended_error_rates(model, runs=1000), extended_error_rates(model, slowdown=0.02, runs=300)
    assert same.false_alarms < 0.01
    assert same.verdicts[Verdict.SAME] >= 0.95
    assert slower.verdicts[Verdict.SLOWER] >= 0.95
    assert slower.verdicts[Verdict.SAME] + slower.verdicts[Verdict.FASTER] < 0.01
    assert max(same.mean_rounds, slower.mean_rounds) < 40


def test_too_much_noise_is_unsure_rather_than_wrong() -> None:
    rates = error_rates(LIKE_H200, rounds=10, slowdown=0.02, runs=300)
    assert rates.verdicts[Verdict.UNSURE] > 0.5
    assert rates.verdicts[Verdict.SAME] + rates.verdicts[Verdict.FASTER] < 0.01


def test_it_stops_when_it_is_sure() -> None:
    turns = simulated_case(QUIET, 40, seed=0, slowdown=0.05).turns
    assert verdict_when_sure(turns["base"], turns["head"]) == (Verdict.SLOWER, 10)
    at_the_margin = simulated_case(QUIET, 40, seed=0, slowdown=0.01).turns
    assert verdict_when_sure(at_the_margin["base"], at_the_margin["head"], most=40) == (Verdict.UNSURE, 40)
