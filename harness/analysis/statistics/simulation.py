"""A simulated clock: rows with known times under the disturbances of a real GPU, to measure the statistics with.

A sample is time · drift(t) · throttle(t) · state(t) · turn noise · sample noise. The first three belong to the moment t
and hit whoever has the turn; rows take turns in a new random order each round, as `harness.running.rounds` lets them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from harness.analysis.statistics.turns import Floats, Integers, Turns
from harness.analysis.statistics.verdict import MARGIN, Verdict, verdict
from harness.interval import ratio_width
from harness.record import Times

_BEST_CLOCK_MHZ = 1980
_HW_THERMAL = 64  # the bit that NVML sets for a GPU too hot


@dataclass(frozen=True)
class NoiseModel:
    """All sizes are fractions of a time. The defaults are noise and drift alone, without throttling or clock states."""

    sample_noise: float = 0.005  # standard deviation, independent between samples
    turn_noise: float = 0.0  # standard deviation, shared by the samples of a turn
    drift: float = 0.08  # amplitude of a sine of random phase, shared by all rows
    drift_period_rounds: float = 20.0
    throttle_step: float = 0.0  # slower by this for a third of the run, from a random moment on (to its end at most)
    bimodal_gap: float = 0.0  # the slow clock state is slower by this
    bimodal_share: float = 0.3  # of the time in the slow state
    bimodal_turns: float = 3.0  # mean stay in the slow state, in turns
    order_bias: float = 0.0  # the last place of a round is slower than the first by this, linear between


NOISE_AND_DRIFT = NoiseModel()
THROTTLED = NoiseModel(throttle_step=0.10)
BIMODAL = NoiseModel(bimodal_gap=0.06)
EVERYTHING = NoiseModel(throttle_step=0.10, bimodal_gap=0.06)
QUIET = NoiseModel(drift=0.0)
# rows at the power limit of an H200: samples of a turn correlate by 0.48, ratios of turns vary by 2.1 %
LIKE_H200 = NoiseModel(sample_noise=0.0125, turn_noise=0.012, drift=0.0)
# the GEMM of reports/gemma2-h200: turns vary by 2 %, samples of a turn by 1.4 %, ratios of two such by 2.8 %
POWER_CAP = NoiseModel(sample_noise=0.014, turn_noise=0.0174, drift=0.0)
# calls of 11 ms at the power limit, `ours` in reports/gate-h200: the clock wanders within a tenth of a second
SHORT_CALLS = NoiseModel(sample_noise=0.026, turn_noise=0.019, drift=0.0)


@dataclass(frozen=True, eq=False)
class SimulatedRun:
    """What a run would have recorded, and what no record knows: when the clock was slow."""

    turns: dict[str, Turns]
    positions: dict[str, Integers]  # (R,) 0 for who had the first turn of the round
    slowdown: dict[str, Floats]  # (R,) of the clock during the turn
    throttled: dict[str, Floats]  # (R,) 1 where the GPU was throttled

    def times(self, name: str) -> Times:
        """The row as a record holds it, with what NVML would have said; split evenly into forward and backward."""
        turns = self.turns[name]
        samples = turns.values.shape[1]
        whole = turns.values.ravel().tolist()
        return Times(
            fwd_no_grad_ms=[time_ms / 2 for time_ms in whole],
            fwd_ms=[time_ms / 2 for time_ms in whole],
            bwd_ms=[time_ms / 2 for time_ms in whole],
            fwd_bwd_ms=whole,
            round=np.repeat(turns.rounds, samples).tolist(),
            position=np.repeat(self.positions[name], samples).tolist(),
            sm_clock_mhz=np.repeat(_BEST_CLOCK_MHZ / self.slowdown[name], samples).astype(int).tolist(),
            throttle_reasons=np.repeat(_HW_THERMAL * self.throttled[name], samples).astype(int).tolist(),
        )


def simulate(
    times_ms: Mapping[str, float], rounds: int, model: NoiseModel, seed: int, samples_per_turn: int = 2
) -> SimulatedRun:
    """A run of `rounds` rounds of rows whose true times are given; the same seed gives the same run."""
    generator = np.random.default_rng([seed, rounds, len(times_ms)])
    players = len(times_ms)
    order = generator.permuted(np.tile(np.arange(players), (rounds, 1)), axis=1)  # (R, P) who has the p-th turn
    positions = np.argsort(order, axis=1)  # (R, P) which place each row has
    clock, throttled = (
        np.take_along_axis(by_turn.reshape(rounds, players), positions, axis=1)  # (R, P) by row
        for by_turn in clock_over(rounds * players, players, model, generator)
    )
    places = positions / max(players - 1, 1)
    turn = np.exp(model.turn_noise * generator.standard_normal((rounds, players)))
    noise = np.exp(model.sample_noise * generator.standard_normal((rounds, players, samples_per_turn)))
    factor = (clock * (1 + model.order_bias * places) * turn)[:, :, None] * noise  # (R, P, S)
    names = list(times_ms)
    return SimulatedRun(
        turns={name: Turns(name, np.arange(rounds), times_ms[name] * factor[:, i]) for i, name in enumerate(names)},
        positions={name: positions[:, i] for i, name in enumerate(names)},
        slowdown={name: clock[:, i] for i, name in enumerate(names)},
        throttled={name: throttled[:, i] for i, name in enumerate(names)},
    )


def verdict_when_sure(
    base: Turns, head: Turns, margin: float = MARGIN, first: int = 10, step: int = 10, most: int = 80
) -> tuple[Verdict, int]:
    """The verdict of a run that plays on while UNSURE, and the rounds it took.

    It looks after `first` rounds and then after every `step` more, up to `most` or what was played.
    """
    for rounds in range(first, most + 1, step):
        found = verdict(base.first(rounds), head.first(rounds), margin)
        if found is not Verdict.UNSURE:
            return found, rounds
    return Verdict.UNSURE, most


def rounds_when_narrow(base: Turns, head: Turns, target: float, first: int = 10) -> int:
    """After how many rounds `harness.running.rounds` lets head rest, its ratio to base known to `target` (0.01: 1 %).

    It looks after `first` rounds and then after every one, up to what was played.
    """
    played = [dict(enumerate(np.exp(turns.log_medians()).tolist())) for turns in (head, base)]
    for rounds in range(first, len(base.rounds)):
        ratios = [{number: times[number] for number in range(rounds)} for times in played]
        if ratio_width(*ratios) <= target:
            return rounds
    return len(base.rounds)


def clock_over(turns: int, players: int, model: NoiseModel, generator: np.random.Generator) -> tuple[Floats, Floats]:
    """(T,) how much slower than its best clock the GPU is at each turn, and (T,) 1 where it is throttled."""
    moment = np.arange(turns, dtype=np.float64)
    phase, begin = generator.uniform(0, 2 * np.pi), generator.uniform(0, turns)
    angle: Floats = 2 * np.pi * moment / (players * model.drift_period_rounds) + phase
    slowdown: Floats = 1 + model.drift * np.sin(angle)
    within = (moment >= begin) & (moment < begin + turns / 3) & (model.throttle_step > 0)
    throttled: Floats = within.astype(np.float64)
    slowdown = slowdown * (1 + model.throttle_step * throttled)
    if model.bimodal_gap:
        slowdown = slowdown * (1 + model.bimodal_gap * _slow_state(turns, model, generator))
    return slowdown, throttled


def _slow_state(turns: int, model: NoiseModel, generator: np.random.Generator) -> Floats:
    """(T,) 1 where the clock is in its slow state: a Markov chain with the share and the mean stay of the model."""
    leave = 1 / model.bimodal_turns
    enter = leave * model.bimodal_share / (1 - model.bimodal_share)
    draws = generator.uniform(size=turns)
    state = np.zeros(turns)
    slow = bool(generator.uniform() < model.bimodal_share)
    for moment in range(turns):
        slow = draws[moment] >= leave if slow else draws[moment] < enter
        state[moment] = slow
    return state
