"""Measures one case: starts a worker per implementation, and takes all of them through the phases of the suite.

The workers of a group live side by side, with their inputs, while the GPU belongs to whoever has the turn
(`harness.running.rounds`). A worker that fails is gone and keeps its row with a status; the others go on.
"""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import cost
from harness.case import Case, Device
from harness.record import Agreement, Memory, Provenance, Record, Status
from harness.running.groups import PROCESS_BYTES, Group, groups_of, places_on, waiting_bytes
from harness.running.player import REFEREE, Player
from harness.running.process import Worker
from harness.running.recording import Recorder
from harness.running.rounds import Notice, Rounds
from harness.suite import Suite, SuiteImplementation
from implementations.registry import LOWER_BOUND

_MOST_SETTLING_AT_ONCE = 8
_SHARE_OF_CONTEXTS = 0.1  # of the device: more is not taken from rows that are judged by workers that wait
_SETTLING_LOGITS = 2  # memory for so many whole logits beside two sets of gradients is kept for each row that settles


@dataclass
class CaseRunner:
    """Everything the cases of a run have in common.

    Times come from processes that have run nothing else; on a GPU they start while the case before is judged. Where
    only agreement is asked for, a healthy worker goes on to the next case: starting one takes far longer than judging a
    small case.
    """

    suite: Suite
    device: Device
    implementations: Sequence[SuiteImplementation]
    provenance: Provenance
    device_bytes: int
    gpu: dict[str, Any]  # what is known of it, for the floors of time; empty on a CPU
    logs: Path
    deadline: float | None = None  # of the whole run, on time.monotonic
    _idle: dict[str, Worker] = field(default_factory=dict, init=False)

    def close(self) -> None:
        """Ends the workers that wait for another case."""
        while self._idle:
            self._idle.popitem()[1].kill()

    def run(self, case: Case, notice: Notice, more: bool = False) -> list[Record]:
        """One record per implementation, in the suite's order. With `more` cases to come their workers start early."""
        measured = [i for i in self.implementations if i.name != LOWER_BOUND]
        records: dict[str, Record] = {}
        groups = groups_of(measured, self.suite.reference, self._twice(measured), self._places(case))
        for group in groups:
            for row, first in self._run_group(case, group, notice, start_ahead=more and len(groups) == 1):
                found = [(row, first)]
                if self._is_crowded_out(row, group) and not row.judged_alone:
                    notice(row.name, "again, alone")  # the workers beside it held memory too
                    self._make_room()
                    found = self._run_group(case, Group((row.implementation,)), notice)
                records[row.name] = found[0][1]
            if more and len(groups) == 1:  # whoever did not start beside the judging, for a row was to be run again
                self._start_ahead(group)
        if any(implementation.name == LOWER_BOUND for implementation in self.implementations):
            records[LOWER_BOUND] = self._recorder(case).of_lower_bound()
        return [records[i.name] for i in self.implementations]

    def _is_crowded_out(self, row: Player, group: Group) -> bool:
        """Whether it ran out of memory beside workers that held some."""
        beside = len(group.rows) > 1 or group.guest is not None or group.twice is not None
        return row.status is Status.OUT_OF_MEMORY and self.device == "cuda" and beside

    @property
    def _phases(self) -> Sequence[str]:
        return self.suite.measurement_on(self.device).phases

    @property
    def _timeout_s(self) -> float:
        return self.suite.limits.timeout_s

    def _twice(self, measured: Sequence[SuiteImplementation]) -> str | None:
        """The row of the A/A: the suite's, or the first that was chosen where --only or --skip left that out."""
        names = [row.name for row in measured]
        if "time" not in self._phases or not names:
            return None
        return self.suite.measured_twice if self.suite.measured_twice in names else names[0]

    def _places(self, case: Case) -> int:
        return places_on(case, self.device, self.device_bytes)

    def _recorder(self, case: Case) -> Recorder:
        return Recorder(self.suite, case, self.provenance, self.gpu)

    def _run_group(
        self, case: Case, group: Group, notice: Notice, start_ahead: bool = False
    ) -> list[tuple[Player, Record]]:
        """The group's rows with their records, in their order."""
        rows = [Player(row) for row in group.rows]
        guest = Player(group.guest) if group.guest is not None and "time" in self._phases else None
        second = Player(group.twice, second=True) if group.twice is not None else None
        companions = [player for player in (guest, second) if player is not None]
        referee = Player(REFEREE)
        try:
            self._open(case, [*rows, *companions], referee, notice)
            statistics = referee.ask("statistics", self._timeout_s)
            if "time" in self._phases or "memory" in self._phases:
                self._settle(case, [*rows, *companions], notice)
            if "memory" in self._phases and self.device == "cuda":
                for row in self._active(rows, "memory", notice):
                    answer = row.ask("memory", self._timeout_s, attribute="attribution" in self._phases)
                    if answer is not None:
                        row.memory = Memory.model_validate(answer)
            if "time" in self._phases:
                reference = guest or next((r for r in rows if r.name == self.suite.reference and r.timed), None)
                rounds = self._rounds(case, notice)
                rounds.play([*rows, *([second] if second else [])], referee, reference)
            for companion in companions:
                companion.release()  # is not judged: its memory is missing to those who are
            if start_ahead and not any(self._is_crowded_out(row, group) for row in rows):
                self._start_ahead(group)
            timed = [row for row in rows if row.active]
            if "agreement" in self._phases:
                self._judge(rows, referee, notice)
        finally:
            for player in [*rows, *companions, referee]:
                self._dismiss(player)
        for row in timed:
            if self._is_crowded_out(row, group):  # by those that wait to be judged: its times are good
                self._judge_alone(case, row, notice)
        recorder = self._recorder(case)
        return [
            (
                row,
                recorder.of_player(
                    row, referee, statistics, second if row.implementation == group.twice else None, guest
                ),
            )
            for row in rows
        ]

    def _rounds(self, case: Case, notice: Notice) -> Rounds:
        order = random.Random(f"{self.suite.seed} {case.id}")
        return Rounds(self.suite.measurement_on(self.device), self._timeout_s, order, notice, self.deadline)

    def _start_ahead(self, group: Group) -> None:
        """Workers for the next case, which import their libraries while this one is judged and nothing is timed."""
        if self.device != "cuda" or self._phases == ["agreement"]:
            return
        rows = _workers(group)
        context = len(rows) * PROCESS_BYTES[self.device] <= _SHARE_OF_CONTEXTS * self.device_bytes
        for name, row in rows.items():
            waiting = self._idle.get(name)
            if waiting is None or not waiting.running:
                worker = self._start(name)
                path, options = (None, {}) if row is REFEREE else (row.location, row.options)
                worker.tell("warm", path=path, options=options, device=self.device, context=context)
                self._keep(name, worker)

    def _make_room(self) -> None:
        """Ends workers that are kept with their tensors, as they are where agreement is all that is measured."""
        if self._phases == ["agreement"]:
            self.close()

    def _keep(self, name: str, worker: Worker) -> None:
        """Lets the worker wait for the next case, and ends one that waited in its place."""
        if name in self._idle:
            self._idle.pop(name).kill()
        self._idle[name] = worker

    def _worker(self, name: str) -> Worker:
        """The one that waits, if it still lives, or a new one."""
        waiting = self._idle.pop(name, None)
        if waiting is not None and waiting.running:
            return waiting
        if waiting is not None:
            waiting.kill()
        return self._start(name)

    def _start(self, name: str) -> Worker:
        """A new worker for a player of that name."""
        return Worker(self.logs / f"{name}.log")

    def _open(self, case: Case, players: list[Player], referee: Player, notice: Notice) -> None:
        """Starts all workers and lets them draw their inputs at the same time: nothing is measured yet."""
        notice("all", "open")
        common = {
            "case": case.model_dump(mode="json"),
            "device": self.device,
            "memory_fraction": self.suite.limits.memory_fraction,
        }

        def start(player: Player) -> None:
            player.worker = self._worker(player.name)
            if player is referee:
                player.send("open_referee", **common)
            else:
                chosen = player.implementation
                player.send("open", path=chosen.location, options=chosen.options, **common)

        def await_answer(player: Player) -> None:
            player.opened = player.receive("open", self._timeout_s) or {}
            if "refused" in player.opened:
                player.status, player.reason = Status.UNSUPPORTED, player.opened.pop("refused")

        _side_by_side([referee, *players], max(2, os.cpu_count() or 1), start, await_answer)
        for player in players:
            if not player.active:
                continue
            if referee.status is not None:  # nothing can be judged: every row shares the referee's fate
                player.fail(referee.status, f"the case could not be set up: {referee.reason}")
            elif player.opened["input_checksum"] != referee.opened["input_checksum"]:
                player.fail(Status.CRASHED, "drew other inputs than the referee: its checksum differs")

    def _settle(self, case: Case, players: Sequence[Player], notice: Notice) -> None:
        """Compiling, autotuning, warming up: at once where nobody times kernels in order to choose one."""

        def start(player: Player) -> None:
            notice(player.name, "settle")
            player.send("settle")

        def await_answer(player: Player) -> None:
            player.settled = player.receive("settle", self._timeout_s) or {}

        alone = [player for player in players if player.active and player.opened["autotunes"]]
        together = [player for player in players if player.active and not player.opened["autotunes"]]
        _side_by_side(together, self._settling_at_once(case, 1 + len(players)), start, await_answer)
        _side_by_side(alone, 1, start, await_answer)

    def _settling_at_once(self, case: Case, workers: int) -> int:
        """How many rows may compile at the same time: as many as find memory, and cores to compile on."""
        if self.device == "cpu":
            return 1  # one thread each, and none to spare
        peak = _SETTLING_LOGITS * cost.logits_bytes(case) + 2 * cost.gradient_floor_bytes(case)
        free = self.device_bytes - workers * waiting_bytes(case, self.device)
        return max(1, min(_MOST_SETTLING_AT_ONCE, free // peak, (os.cpu_count() or 1) // 2))

    def _dismiss(self, player: Player) -> None:
        """Ends the player's worker, or keeps it for the next case where that cannot bias a time."""
        healthy = player.worker is not None and player.status in (None, Status.UNSUPPORTED)
        if healthy and player.worker is not None and self._phases == ["agreement"]:
            self._keep(player.name, player.worker)
        else:
            player.release()

    def _judge(self, rows: list[Player], referee: Player, notice: Notice) -> None:
        """Agreement comes last: its memory and its heat must not touch what is timed."""
        if not any(row.active for row in rows):
            return
        notice("referee", "oracle")
        eager = referee.ask("eager_errors", self._timeout_s)
        for row in self._active(rows, "agreement", notice):
            if eager is None:
                row.fail(Status.CRASHED, f"could not be judged: the referee {referee.reason}")
                continue
            answer = row.ask("agree", self._timeout_s, eager=eager, max_excess=self.suite.max_excess)
            if answer is not None:
                row.agreement = Agreement.model_validate(answer)

    def _judge_alone(self, case: Case, row: Player, notice: Notice) -> None:
        """Agreement once more with a new worker and a new referee, and nobody else; times and memory stay."""
        notice(row.name, "agreement again, alone")
        row.status, row.reason, row.judged_alone = None, None, True
        referee = Player(REFEREE)
        self._make_room()
        try:
            self._open(case, [row], referee, notice)
            self._judge([row], referee, notice)
        finally:
            for player in (row, referee):
                self._dismiss(player)

    def _active(self, rows: Sequence[Player], phase: str, notice: Notice) -> Iterator[Player]:
        for row in rows:
            if row.active:
                notice(row.name, phase)
                yield row


def _workers(group: Group) -> dict[str, SuiteImplementation]:
    """All workers that a group with the same rows will have: what each runs by its `Player.name`."""
    players = [Player(REFEREE), *(Player(row) for row in group.rows)]
    players += [] if group.twice is None else [Player(group.twice, second=True)]
    return {player.name: player.implementation for player in players}


def _side_by_side(
    players: Sequence[Player], at_once: int, start: Callable[[Player], None], await_answer: Callable[[Player], None]
) -> None:
    """Starts each player's request and awaits all answers, with at most `at_once` under way."""
    waiting: deque[Player] = deque()
    for player in players:
        if len(waiting) == at_once:
            await_answer(waiting.popleft())
        start(player)
        waiting.append(player)
    while waiting:
        await_answer(waiting.popleft())
