"""Measures a case for a gate: workers of two trees in the same rounds, which go on while a verdict is UNSURE."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from harness.analysis.statistics.ratio import ratio_interval
from harness.analysis.statistics.turns import Turns, timed_turns
from harness.analysis.statistics.verdict import Verdict, verdict_of
from harness.case import Case
from harness.comparison.comparison import BASE, HEAD
from harness.gate.pairing import Pair, chunks_of
from harness.record import Record
from harness.running.player import AGAIN, Player
from harness.running.process import Origin, Worker
from harness.running.rounds import Notice, Rounds
from harness.running.scheduler import CaseRunner
from harness.suite import SuiteImplementation

# The margin pays for looking repeatedly, if that is not after every round (docs/statistics.md).
ROUNDS_BETWEEN_LOOKS = 10

Margin = Callable[[str, Case], float | None]  # of a row's name and a case; None where no time fails the gate


@dataclass
class PairRunner(CaseRunner):
    """A runner for rows NAME@base and NAME@head, whose workers start from their trees."""

    origins: Mapping[str, Origin] = field(default_factory=dict)  # by the end of a row's name; none: this process's
    margin: Margin = lambda *_: None
    _second: bool = field(default=True, init=False)

    def run_pairs(self, case: Case, pairs: Sequence[Pair], notice: Notice, more: bool = False) -> list[Record]:
        """The records of all rows; on a small card of some pairs after the others."""
        chunks = list(chunks_of(pairs, super()._places(case)))
        records: list[Record] = []
        for chunk, second in chunks:
            self.implementations = [row for pair in chunk for row in pair.rows]
            self._second = second
            if self.implementations:
                records += self.run(case, notice, more=more and len(chunks) == 1)
        return records

    def _places(self, case: Case) -> int:  # noqa: ARG002
        return 1 + len(self.implementations)  # `run_pairs` has seen to it that there is room

    def _twice(self, measured: Sequence[SuiteImplementation]) -> str | None:
        return super()._twice(measured) if self._second else None

    def _start(self, name: str) -> Worker:
        log = self.logs / f"{name}.log"
        for end, origin in self.origins.items():
            if name.removesuffix(AGAIN).endswith(end):
                return Worker(log, origin)
        return Worker(log)

    def _rounds(self, case: Case, notice: Notice) -> Rounds:
        rounds = super()._rounds(case, notice)
        rounds.unknown = _UnsurePairs(case, self.margin, self._timeout_s)
        return rounds


@dataclass
class _UnsurePairs:
    """Who plays on: both rows of each pair whose verdict is UNSURE, and the second worker of the A/A."""

    case: Case
    margin: Margin
    timeout_s: float
    _looked: int = -1
    _names: set[str] = field(default_factory=set)

    def __call__(self, players: Sequence[Player]) -> list[Player]:
        played = max((player.rounds_played for player in players), default=0)
        if self._looked < 0 or played >= self._looked + ROUNDS_BETWEEN_LOOKS:
            self._looked, self._names = played, self._unsure(players)
        playing = [player for player in players if player.implementation.name in self._names and not player.second]
        return [player for player in players if player in playing or (player.second and playing)]

    def _unsure(self, players: Sequence[Player]) -> set[str]:
        known = {player.implementation.name: player for player in players if not player.second}
        found: set[str] = set()
        for name, head in known.items():
            row = name.removesuffix(HEAD)
            base = known.get(row + BASE)
            if base is None or (margin := self.margin(row, self.case)) is None:
                continue
            head_turns, base_turns = self._turns(head), self._turns(base)
            if head_turns is None or base_turns is None:
                continue
            if verdict_of(ratio_interval(head_turns, base_turns), margin) is Verdict.UNSURE:
                found |= {name, base.implementation.name}
        return found

    def _turns(self, player: Player) -> Turns | None:
        """As the gate will judge them: with a call's share of what is done rarely. None if nothing was timed."""
        if player.figures is None:
            player.figures = (player.ask("figures", self.timeout_s) or {}).get("figures", {})
        return timed_turns(player.name, player.times(), amortised_ms=player.figures.get("amortised_ms", 0.0))
