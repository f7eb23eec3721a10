"""Rounds: every player of a group has one turn in each, in a new random order, until the ratios are known well enough.

Drift of clocks and temperature so hits all of them alike, and cancels in the ratio of two turns of one round.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.interval import by_round, ratio_width, relative_width
from harness.running.player import Player
from harness.suite import Measurement

Notice = Callable[[str, str], None]  # (player, phase): what is going on


@dataclass
class Rounds:
    """The timed phase of a group. Samples are left with the players, each with its round and its place in it.

    Everyone plays the minimum. Beyond it those play on whose ratio to the reference is not known to `target_interval`,
    with the reference and the referee, until all are or the rounds have taken their budget. Each player is left with
    which of the two it was, where it did not fail.
    """

    measurement: Measurement
    timeout_s: float
    order: random.Random
    notice: Notice
    deadline: float | None = None  # of the whole run, on time.monotonic
    unknown: Callable[[Sequence[Player]], Sequence[Player]] | None = None  # who plays on, in place of the rule above

    def play(self, players: Sequence[Player], referee: Player, reference: Player | None) -> None:
        """Plays until enough is known. A player that fails is out; the round goes on without it."""
        number, playing = 0, [player for player in players if player.timed]
        end = self._end()
        while any(player.active for player in playing):
            always = [referee] if reference is None or reference in playing else [referee, reference]
            self._round(number, [*always, *playing])
            number += 1
            if number < self.measurement.minimum_rounds:
                continue
            timed = [player for player in players if player.timed]
            if self.unknown is not None:
                playing = list(self.unknown(timed))
            else:
                playing = [player for player in timed if self._is_wide(player, players, referee, reference)]
            if time.monotonic() > end:
                break
        for player in players:
            if player.timed:  # the reference plays for the others' sake and is known when they are
                unknown = player in playing or (player is reference and bool(playing))
                player.stopped = "budget" if unknown else "known"

    def _end(self) -> float:
        """When rounds beyond the minimum end, on time.monotonic; half of what is left of the run is for judging."""
        now = time.monotonic()
        left = self.measurement.case_budget_s
        if self.deadline is not None:
            left = min(left, (self.deadline - now) / 2)
        return now + left

    def _round(self, number: int, playing: list[Player]) -> None:
        self.order.shuffle(playing)
        position = 0
        for player in playing:
            if not player.active:
                continue
            self.notice(player.name, f"round {number + 1}")
            player.lead_in_ms = self.measurement.lead_in_ms
            samples = self.measurement.samples_per_turn
            turn = player.ask("turn", self.timeout_s, samples=samples, lead_in_ms=player.lead_in_ms)
            if turn is None:
                taken = len(player.samples.get("round", []))
                player.reason = f"{player.reason} (in round {number + 1}, after {taken} samples)"
            else:
                for key, values in turn.items():
                    player.samples.setdefault(key, []).extend(values)
                for key, value in (("round", number), ("position", position)):
                    player.samples.setdefault(key, []).extend([value] * self.measurement.samples_per_turn)
            position += 1

    def _is_wide(self, player: Player, players: Sequence[Player], referee: Player, reference: Player | None) -> bool:
        """Whether more rounds are wanted for the player's sake."""
        if player is reference:  # has no ratio to itself, and plays as long as anybody does
            others = any(other.timed for other in players if other is not reference)
            return not others and self._width(player, referee, "gemm_ms") > self.measurement.target_interval
        if reference is not None and reference.active:
            width = self._width(player, reference, "fwd_bwd_ms")
        else:
            width = self._width(player, referee, "gemm_ms")
        return width > self.measurement.target_interval

    def _width(self, player: Player, base: Player, key: str) -> float:
        """Of the player's ratio to `base`; of its time where nobody is left to compare with."""
        own = by_round(player.samples["round"], player.samples["fwd_bwd_ms"])
        if not base.active:
            return relative_width(list(own.values()))
        return ratio_width(own, by_round(base.samples["round"], base.samples[key]))
