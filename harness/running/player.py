"""A player: a worker with a part in a case, from its start to what its record says of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from harness.record import Agreement, Memory, Status, Stopped, Times
from harness.running.process import Worker, WorkerFailure
from harness.suite import SuiteImplementation

AGAIN = "-again"  # the end of the name of a row's second worker
REFEREE = SuiteImplementation.model_construct(name="referee", path=None, options={})  # of no suite: runs nothing


@dataclass
class Player:
    """An implementation, a second worker of it, or the referee. Once it has a status nothing more is asked of it."""

    implementation: SuiteImplementation
    second: bool = False  # the other worker of an A/A
    worker: Worker | None = None
    status: Status | None = None
    reason: str | None = None
    opened: dict[str, Any] = field(default_factory=dict)
    settled: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, list[Any]] = field(default_factory=dict)  # of all turns so far, each with round and position
    figures: dict[str, float] | None = None  # what it says of itself; None while nobody asked
    stopped: Stopped | None = None  # why it had no more turns; None if it failed or had none
    lead_in_ms: float = 0.0  # before every timed call
    memory: Memory | None = None
    agreement: Agreement | None = None
    judged_alone: bool = False  # its agreement is of another worker than its times, for memory's sake
    seconds: float = 0.0  # that its answers took

    @property
    def name(self) -> str:
        """As logs and progress call it."""
        return self.implementation.name + (AGAIN if self.second else "")

    @property
    def active(self) -> bool:
        return self.worker is not None and self.status is None

    @property
    def timed(self) -> bool:
        """Whether it takes turns: times in the Triton interpreter mean nothing."""
        return self.active and not self.opened.get("interpreted", False)

    @property
    def rounds_played(self) -> int:
        return len(set(self.samples.get("round", [])))

    def times(self) -> Times | None:
        """What was timed of it; None if it never got ready."""
        if not self.opened:
            return None
        return Times(**self.samples, **self.settled, stopped=self.stopped, lead_in_ms=self.lead_in_ms)

    def send(self, what: str, **arguments: Any) -> None:
        """Sends a request without waiting; nothing to a player that is out."""
        if self.active:
            self._alive().send(what, **arguments)

    def receive(self, what: str, timeout_s: float) -> Any:
        """The answer to the last request; None from a player that is out, or is from now on."""
        begin = time.monotonic()
        answer = None
        if self.active:
            with self._failures():
                answer = self._alive().receive(what, timeout_s)
        self.seconds += time.monotonic() - begin
        return answer

    def ask(self, what: str, timeout_s: float, **arguments: Any) -> Any:
        """`send` and `receive`."""
        self.send(what, **arguments)
        return self.receive(what, timeout_s)

    def fail(self, status: Status, reason: str) -> None:
        """Takes it out of the case, with what its record will say. The other players go on."""
        self.status, self.reason = status, reason
        self.release()

    def release(self) -> None:
        """Ends the worker."""
        if self.worker is not None:
            self.worker.kill()
            self.worker = None

    def _alive(self) -> Worker:
        if self.worker is None:
            raise AssertionError(f"{self.name} has no worker left to ask")
        return self.worker

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except WorkerFailure as failure:
            self.fail(failure.status, failure.reason)
