"""Who has which turn, who plays on, and what is left of a player that fails."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from harness.analysis.statistics.simulation import NOISE_AND_DRIFT, rounds_when_narrow, simulate
from harness.analysis.statistics.turns import Turns
from harness.record import Status, Times
from harness.running.player import REFEREE, Player
from harness.running.process import WorkerFailure
from harness.running.rounds import Rounds
from harness.suite import Measurement, SuiteImplementation


class Clock:
    """What is shared by all turns: how slow the GPU is now, and who has had it."""

    def __init__(self, slowness: Callable[[int], float] = lambda turn: 1.0) -> None:
        self.turns: list[str] = []
        self.slowness = slowness

    def tick(self, name: str) -> float:
        self.turns.append(name)
        return self.slowness(len(self.turns))


class FakeWorker:
    """Answers turns at once: `noise` is added to every second one; after `lives` turns it fails."""

    def __init__(self, name: str, clock: Clock, noise: float = 0.0, lives: int = 10**6) -> None:
        self.name, self.clock, self.noise, self.lives = name, clock, noise, lives
        self.turns = 0
        self.killed = False

    def send(self, what: str, samples: int, lead_in_ms: float) -> None:
        assert what == "turn"
        self.samples, self.lead_in_ms = samples, lead_in_ms

    def receive(self, what: str, timeout_s: float) -> dict[str, list[float]]:
        if self.turns == self.lives:
            raise WorkerFailure(Status.OUT_OF_MEMORY, "full")
        self.turns += 1
        taken_ms = self.clock.tick(self.name) * (1 + self.noise * (self.turns % 7))
        if self.name == "referee":
            return {"gemm_ms": [taken_ms] * self.samples, "copy_ms": [taken_ms] * self.samples}
        return {key: [taken_ms] * self.samples for key in ("fwd_no_grad_ms", "fwd_ms", "bwd_ms", "fwd_bwd_ms")}

    def kill(self) -> None:
        self.killed = True


def player(worker: FakeWorker, **changes: Any) -> Player:
    implementation = REFEREE if worker.name == "referee" else SuiteImplementation(name=worker.name, path="a:b")
    return Player(implementation, worker=worker, opened={"interpreted": False}, **changes)  # type: ignore[arg-type]


def play(
    players: list[Player],
    referee: Player,
    reference: Player | None,
    budget_s: float = 0.2,
    deadline: float | None = None,
    **changes: Any,
) -> Rounds:
    measurement = Measurement.model_validate({"minimum_rounds": 10, "case_budget_s": budget_s} | changes)
    rounds = Rounds(measurement, 1.0, random.Random(0), lambda *_: None, deadline)
    rounds.play(players, referee, reference)
    return rounds


def test_everyone_has_one_turn_in_each_round_in_a_new_order() -> None:
    clock = Clock()
    names = ["reference", "one", "other"]
    players = [player(FakeWorker(name, clock)) for name in names]
    referee = player(FakeWorker("referee", clock))
    play(players, referee, players[0], target_interval=0.5)
    rounds = [tuple(clock.turns[start : start + 4]) for start in range(0, len(clock.turns), 4)]
    assert len(rounds) == 10
    assert all(sorted(turns) == sorted(["referee", *names]) for turns in rounds)
    assert len(set(rounds)) > 5
    for one in [*players, referee]:
        assert one.samples["round"] == [number for number in range(10) for _ in range(2)]
        assert one.samples["position"] == [turns.index(one.name) for turns in rounds for _ in range(2)]
    assert all(isinstance(one.times(), Times) for one in players)


def test_every_turn_is_asked_for_its_lead_in_and_every_record_says_so() -> None:
    clock = Clock()
    workers = {name: FakeWorker(name, clock) for name in ("reference", "one", "referee")}
    players = {name: player(worker) for name, worker in workers.items()}
    play([players["one"]], players["referee"], players["reference"], target_interval=0.5, lead_in_ms=50)
    assert [worker.lead_in_ms for worker in workers.values()] == [50.0] * 3
    told = [players[name].times() for name in ("reference", "one")]
    assert [times.lead_in_ms for times in told if times is not None] == [50.0] * 2


def test_the_order_is_that_of_the_seed() -> None:
    orders = []
    for _ in range(2):
        clock = Clock()
        players = [player(FakeWorker(name, clock)) for name in ("reference", "one")]
        play(players, player(FakeWorker("referee", clock)), players[0], target_interval=0.5)
        orders.append(clock.turns)
    assert orders[0] == orders[1]


def test_beyond_the_minimum_only_rows_with_a_wide_ratio_the_reference_and_the_referee_play_on() -> None:
    clock = Clock()
    workers = {name: FakeWorker(name, clock) for name in ("reference", "steady")}
    workers["noisy"] = FakeWorker("noisy", clock, noise=0.05)
    players = [player(worker) for worker in workers.values()]
    referee = FakeWorker("referee", clock)
    play(players, player(referee), players[0])
    assert workers["steady"].turns == 10
    assert workers["noisy"].turns > 10
    assert workers["reference"].turns == workers["noisy"].turns == referee.turns


def test_what_slows_a_whole_round_asks_for_no_more_rounds() -> None:
    clock = Clock(lambda turn: 1.0 + 0.3 * ((turn - 1) // 3 % 5))  # the same for all three turns of a round
    workers = [FakeWorker(name, clock) for name in ("reference", "one")]
    players = [player(worker) for worker in workers]
    play(players, player(FakeWorker("referee", clock)), players[0])
    assert [worker.turns for worker in workers] == [10, 10]


def test_too_few_rounds_for_an_interval_are_wide_until_the_budget_is_spent() -> None:
    clock = Clock()
    workers = [FakeWorker(name, clock) for name in ("reference", "one")]
    players = [player(worker) for worker in workers]
    play(players, player(FakeWorker("referee", clock)), players[0], minimum_rounds=2, samples_per_turn=10)
    assert [worker.turns for worker in workers] == [6, 6]
    players = [player(FakeWorker(name, clock)) for name in ("reference", "one")]
    play(players, player(FakeWorker("referee", clock)), players[0], 1e-9, minimum_rounds=2, samples_per_turn=10)
    assert [one.rounds_played for one in players] == [2, 2]


def test_a_row_that_fails_keeps_its_samples_and_the_round_goes_on() -> None:
    clock = Clock()
    workers = {name: FakeWorker(name, clock) for name in ("reference", "one")}
    workers["mortal"] = FakeWorker("mortal", clock, lives=7)
    players = [player(worker) for worker in workers.values()]
    play(players, player(FakeWorker("referee", clock)), players[0], target_interval=0.5)
    mortal = players[2]
    assert (mortal.status, mortal.reason) == (Status.OUT_OF_MEMORY, "full (in round 8, after 14 samples)")
    assert workers["mortal"].killed and not workers["one"].killed
    times = mortal.times()
    assert times is not None and len(times.fwd_bwd_ms) == 14
    assert workers["one"].turns == workers["reference"].turns == 10


@pytest.mark.parametrize("lives", [3, 12])
def test_without_a_reference_ratios_to_the_gemm_decide(lives: int) -> None:
    clock = Clock()
    mortal, steady, noisy = (
        FakeWorker("reference", clock, lives=lives),
        FakeWorker("steady", clock),
        FakeWorker("noisy", clock, noise=0.05),
    )
    players = [player(worker) for worker in (mortal, steady, noisy)]
    play(players, player(FakeWorker("referee", clock)), players[0])
    assert steady.turns == 10
    assert noisy.turns > 12


def test_a_guest_plays_every_round_and_the_others_have_their_ratios_to_it() -> None:
    clock = Clock()
    guest, steady, noisy = (
        FakeWorker("reference", clock),
        FakeWorker("steady", clock),
        FakeWorker("noisy", clock, noise=0.05),
    )
    players = [player(steady), player(noisy)]
    play(players, player(FakeWorker("referee", clock)), player(guest))
    assert steady.turns == 10
    assert guest.turns == noisy.turns > 10


def test_interpreted_rows_have_no_turns() -> None:
    clock = Clock()
    interpreted = player(FakeWorker("triton", clock))
    interpreted.opened["interpreted"] = True
    players = [player(FakeWorker("reference", clock)), interpreted]
    play(players, player(FakeWorker("referee", clock)), players[0])
    assert "triton" not in clock.turns


def test_everyone_failing_ends_the_rounds() -> None:
    clock = Clock()
    players = [player(FakeWorker(name, clock, lives=2)) for name in ("reference", "one")]
    play(players, player(FakeWorker("referee", clock)), players[0])
    assert [one.status for one in players] == [Status.OUT_OF_MEMORY] * 2
    assert clock.turns.count("one") == 2


class Recorded(FakeWorker):
    """Answers its turns with those of a simulated run."""

    def __init__(self, name: str, turns: Turns) -> None:
        super().__init__(name, Clock())
        self.recorded = turns

    def receive(self, what: str, timeout_s: float) -> dict[str, list[float]]:
        self.turns += 1
        taken = self.recorded.values[self.turns - 1].tolist()
        return {"gemm_ms": taken} if self.name == "referee" else {"fwd_bwd_ms": taken}


@pytest.mark.parametrize("seed", range(8))
def test_rows_rest_when_the_simulation_says_so(seed: int) -> None:
    """The error rates of docs/statistics.md are of `rounds_when_narrow`: this is the rule that it stands for."""
    times = {"base": 60.0, "head": 61.0, "gemm": 14.0}
    turns = simulate(times, 120, NOISE_AND_DRIFT, seed, samples_per_turn=1).turns
    workers = {name: Recorded(name, turns[name]) for name in ("base", "head")}
    players = [player(worker) for worker in workers.values()]
    play(players, player(Recorded("referee", turns["gemm"])), players[0], 60, minimum_rounds=20, samples_per_turn=1)
    assert workers["head"].turns == rounds_when_narrow(turns["base"], turns["head"], target=0.01, first=20)
    assert workers["base"].turns == workers["head"].turns < 120


def stopped(*noises: float, **settings: Any) -> dict[str, str | None]:
    clock = Clock()
    workers = [FakeWorker("reference", clock), *(FakeWorker(f"row{noise}", clock, noise) for noise in noises)]
    players = [player(worker) for worker in workers]
    play(players, player(FakeWorker("referee", clock)), players[0], **settings)
    return {one.name: one.times().stopped for one in players}


def test_why_a_row_stopped_is_told() -> None:
    assert stopped(0.0, 0.001) == {"reference": "known", "row0.0": "known", "row0.001": "known"}
    assert stopped(0.0, 0.05, budget_s=1e-9) == {"reference": "budget", "row0.0": "known", "row0.05": "budget"}


def test_what_failed_was_not_stopped() -> None:
    clock = Clock()
    players = [player(FakeWorker(name, clock, lives=lives)) for name, lives in (("reference", 99), ("mortal", 3))]
    play(players, player(FakeWorker("referee", clock)), players[0], target_interval=0.5)
    assert players[1].times().stopped is None


def test_the_end_of_the_run_ends_the_rounds_and_leaves_time_to_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stopped(0.05, budget_s=1000.0, deadline=time.monotonic())["row0.05"] == "budget"  # after the minimum
    monkeypatch.setattr("harness.running.rounds.time.monotonic", lambda: 100.0)
    measurement = Measurement(case_budget_s=60.0)
    ends = {
        deadline: Rounds(measurement, 1.0, random.Random(0), lambda *_: None, deadline)._end()
        for deadline in (None, 150.0, 300.0)
    }
    assert ends == {None: 160.0, 150.0: 125.0, 300.0: 160.0}
