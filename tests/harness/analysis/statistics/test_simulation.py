"""The simulated clock does what its noise model says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from harness.analysis.statistics.simulation import LIKE_H200, NOISE_AND_DRIFT, QUIET, simulate
from harness.analysis.statistics.turns import paired

TIMES_MS = {"one": 60.0, "other": 90.0, "gemm": 14.0}


def test_the_same_seed_gives_the_same_run() -> None:
    runs = [simulate(TIMES_MS, 12, NOISE_AND_DRIFT, seed).turns["one"].values for seed in (1, 1, 2)]
    assert (runs[0] == runs[1]).all() and not (runs[0] == runs[2]).any()


def test_everyone_has_one_place_in_each_round_and_a_new_one_each_time() -> None:
    positions = np.stack(list(simulate(TIMES_MS, 300, QUIET, seed=0).positions.values()))
    assert (np.sort(positions, axis=0) == np.arange(3)[:, None]).all()
    assert all(np.bincount(places, minlength=3).min() > 70 for places in positions)


def test_without_disturbances_only_sample_noise_is_left() -> None:
    values = np.log(simulate(TIMES_MS, 2000, QUIET, seed=0).turns["one"].values / 60)
    assert values.std() == pytest.approx(0.005, rel=0.05)
    assert np.corrcoef(values.T)[0, 1] == pytest.approx(0, abs=0.06)


def test_drift_has_the_size_that_was_asked_for_and_is_shared() -> None:
    run = simulate(TIMES_MS, 200, NOISE_AND_DRIFT, seed=0)
    assert run.turns["one"].values.max() / 60 == pytest.approx(1.08, abs=0.02)
    assert run.turns["one"].values.min() / 60 == pytest.approx(0.92, abs=0.02)
    assert np.log(paired(run.turns["other"], run.turns["one"]).values).std() < 0.02


def test_the_slow_state_has_its_share_and_throttling_its_third() -> None:
    slow = simulate(TIMES_MS, 5000, replace(QUIET, bimodal_gap=0.06), seed=0).slowdown["one"]
    assert np.mean(slow > 1.03) == pytest.approx(0.3, abs=0.03)
    shares = [simulate(TIMES_MS, 30, replace(QUIET, throttle_step=0.1), s).throttled["one"].mean() for s in range(50)]
    assert max(shares) == pytest.approx(1 / 3, abs=0.04)


def test_samples_of_a_turn_are_as_alike_as_on_the_h200() -> None:
    run = simulate(TIMES_MS, 2000, LIKE_H200, seed=0)
    assert np.corrcoef(np.log(run.turns["one"].values).T)[0, 1] == pytest.approx(0.48, abs=0.05)
    assert np.log(paired(run.turns["other"], run.turns["one"]).values).std() == pytest.approx(0.021, abs=0.001)


def test_order_bias_runs_from_the_first_place_to_the_last() -> None:
    run = simulate(TIMES_MS, 2000, replace(QUIET, order_bias=0.1), seed=0)
    means = [run.turns["one"].values[run.positions["one"] == place].mean() for place in range(3)]
    assert means == pytest.approx([60, 63, 66], rel=0.002)


def test_a_row_as_a_record_holds_it() -> None:
    run = simulate(TIMES_MS, 12, replace(QUIET, throttle_step=0.1), seed=0)
    times = run.times("one")
    assert times.round == sorted(list(range(12)) * 2)
    assert times.fwd_bwd_ms == run.turns["one"].values.ravel().tolist()
    assert set(times.throttle_reasons) == {0, 64}
    assert min(times.sm_clock_mhz) == int(1980 / 1.1)
