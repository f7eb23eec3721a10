"""Measures one case: starts a worker per implementation, hands out turns one at a time, and turns answers into records.

All workers of a case live side by side, with their inputs, while the GPU belongs to whoever has the turn. A worker that
fails is gone and keeps its row with a status; the others go on.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness import cost
from harness.case import Case
from harness.floor import below_floor, time_floors_ms
from harness.interval import relative_width
from harness.process import Worker, WorkerFailure
from harness.record import Agreement, Memory, Provenance, Record, Status, Times
from harness.suite import Suite, SuiteImplementation
from implementations.registry import LOWER_BOUND

_SHARE_OF_IDLE_WORKERS = 0.5  # of the device's memory: what inputs and contexts of waiting workers may take
_PROCESS_BYTES = {"cuda": 700 << 20, "cpu": 400 << 20}  # a CUDA context with its modules; torch imported

Notice = Callable[[str, str], None]  # (implementation, phase): what is going on


@dataclass
class Row:
    """An implementation on its way to a record."""

    implementation: SuiteImplementation
    worker: Worker | None = None
    status: Status | None = None  # set when nothing more is asked of it
    reason: str | None = None
    opened: dict[str, Any] = field(default_factory=dict)
    settled: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, list[Any]] = field(default_factory=dict)
    memory: Memory | None = None
    agreement: Agreement | None = None
    seconds: float = 0.0

    @property
    def active(self) -> bool:
        return self.worker is not None and self.status is None

    def fail(self, failure: WorkerFailure) -> None:
        self.status, self.reason = failure.status, failure.reason
        self.release()

    def release(self) -> None:
        if self.worker is not None:
            self.worker.kill()
            self.worker = None


@dataclass
class CaseRunner:
    """Everything the cases of a run have in common.

    Times come from processes that have run nothing else. Where only agreement is asked for, a healthy worker goes on to
    the next case: starting one takes far longer than judging a small case.
    """

    suite: Suite
    device: Literal["cuda", "cpu"]
    implementations: Sequence[SuiteImplementation]
    provenance: Provenance
    device_bytes: int
    gpu: dict[str, Any]  # what is known of it, for the floors of time; empty on a CPU
    logs: Path
    _idle: dict[str, Worker] = field(default_factory=dict, init=False)

    def close(self) -> None:
        """Ends the workers that wait for another case."""
        while self._idle:
            self._idle.popitem()[1].kill()

    def run(self, case: Case, notice: Notice) -> list[Record]:
        """One record per implementation, in the suite's order."""
        measured = [i for i in self.implementations if i.name != LOWER_BOUND]
        records: dict[str, Record] = {}
        for group in self._groups(case, measured):
            found = self._run_group(case, group, notice)
            for position, implementation in enumerate(group):
                if found[position].status is Status.OUT_OF_MEMORY and self.device == "cuda" and len(group) > 1:
                    notice(implementation.name, "again, alone")  # the workers beside it held memory too
                    found[position] = self._run_group(case, [implementation], notice)[0]
            records |= {record.implementation: record for record in found}
        for implementation in self.implementations:
            if implementation.name == LOWER_BOUND:
                records[LOWER_BOUND] = self._lower_bound(case)
        return [records[i.name] for i in self.implementations]

    def _groups(self, case: Case, rows: Sequence[SuiteImplementation]) -> list[Sequence[SuiteImplementation]]:
        """Rows that fit the device side by side; each group has its own referee, and so its own GEMM."""
        each = cost.input_bytes(case) + _PROCESS_BYTES[self.device]
        size = max(1, int(_SHARE_OF_IDLE_WORKERS * self.device_bytes / each) - 1)
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def _run_group(self, case: Case, implementations: Sequence[SuiteImplementation], notice: Notice) -> list[Record]:
        measurement = self.suite.measurement_on(self.device)
        rows = [Row(i) for i in implementations]
        referee = Row(SuiteImplementation.model_construct(name="referee", path=None, options={}))
        begin = time.monotonic()
        try:
            self._open(case, rows, referee, notice)
            statistics = self._ask(referee, "statistics")
            if "time" in measurement.phases or "memory" in measurement.phases:
                for row in self._active(rows, "settle", notice):
                    row.settled = self._ask(row, "settle") or {}
            if "memory" in measurement.phases and self.device == "cuda":
                for row in self._active(rows, "memory", notice):
                    if (answer := self._ask(row, "memory", attribute="attribution" in measurement.phases)) is not None:
                        row.memory = Memory.model_validate(answer)
            if "time" in measurement.phases:
                self._take_turns(case, rows, referee, begin, notice)
            if "agreement" in measurement.phases:
                self._judge(rows, referee, notice)
        finally:
            for row in [*rows, referee]:
                self._dismiss(row)
        return [self._record(case, row, referee, statistics) for row in rows]

    def _open(self, case: Case, rows: list[Row], referee: Row, notice: Notice) -> None:
        """Starts all workers and lets them draw their inputs at the same time: nothing is measured yet."""
        notice("all", "open")
        common = {
            "case": case.model_dump(mode="json"),
            "device": self.device,
            "memory_fraction": self.suite.limits.memory_fraction,
        }
        for row in [referee, *rows]:
            row.worker = self._idle.pop(row.implementation.name, None) or Worker(
                self.logs / f"{row.implementation.name}.log"
            )
            if row is referee:
                row.worker.send("open_referee", **common)
            else:
                chosen = row.implementation
                row.worker.send("open", path=chosen.location, options=chosen.options, **common)
        for row in [referee, *rows]:
            with self._failures_of(row):
                row.opened = _worker(row).receive("open", self.suite.limits.timeout_s)
                if "refused" in row.opened:
                    row.status, row.reason = Status.UNSUPPORTED, row.opened.pop("refused")
        if referee.status is not None:  # nothing can be judged: every row shares the referee's fate
            for row in rows:
                if row.active:
                    row.fail(WorkerFailure(referee.status, f"the case could not be set up: {referee.reason}"))
        for row in rows:
            if row.active and row.opened["input_checksum"] != referee.opened["input_checksum"]:
                row.fail(WorkerFailure(Status.CRASHED, "drew other inputs than the referee: its checksum differs"))

    def _dismiss(self, row: Row) -> None:
        """Ends the row's worker, or keeps it for the next case where that cannot bias a time."""
        healthy = row.worker is not None and row.status in (None, Status.UNSUPPORTED)
        if healthy and self.suite.measurement_on(self.device).phases == ["agreement"]:
            self._idle[row.implementation.name] = _worker(row)
        else:
            row.release()

    def _take_turns(self, case: Case, rows: list[Row], referee: Row, begin: float, notice: Notice) -> None:
        """Rounds in which everyone has one turn, in a new random order each: drift hits all alike."""
        measurement = self.suite.measurement_on(self.device)
        order = random.Random(f"{self.suite.seed} {case.id}")
        timed = [row for row in rows if row.active and not row.opened["interpreted"]]
        round_number, wide = 0, timed
        while any(row.active for row in wide):
            # beyond the minimum only those play on whose median is not settled, with the rows all are compared to
            players = [referee, *(r for r in timed if r in wide or r.implementation.name == self.suite.reference)]
            order.shuffle(players)
            for row in players:
                if not row.active:
                    continue
                notice(row.implementation.name, f"round {round_number + 1}")
                turn = self._ask(row, "turn", samples=measurement.samples_per_turn)
                for key, values in (turn or {}).items():
                    row.samples.setdefault(key, []).extend(values)
                if turn is not None:
                    row.samples.setdefault("round", []).extend([round_number] * measurement.samples_per_turn)
            round_number += 1
            if round_number < measurement.minimum_rounds:
                continue
            wide = [
                row
                for row in timed
                if row.active and relative_width(row.samples["fwd_bwd_ms"]) > measurement.target_interval
            ]
            if time.monotonic() - begin > measurement.case_budget_s:
                break

    def _judge(self, rows: list[Row], referee: Row, notice: Notice) -> None:
        """Agreement comes last: its memory and its heat must not touch what is timed."""
        if not any(row.active for row in rows):
            return
        notice("referee", "oracle")
        eager = self._ask(referee, "eager_errors")
        for row in self._active(rows, "agreement", notice):
            if eager is None:
                row.fail(WorkerFailure(Status.CRASHED, f"could not be judged: the referee {referee.reason}"))
            elif (answer := self._ask(row, "agree", eager=eager, max_excess=self.suite.max_excess)) is not None:
                row.agreement = Agreement.model_validate(answer)

    def _active(self, rows: list[Row], phase: str, notice: Notice) -> Iterator[Row]:
        for row in rows:
            if row.active:
                notice(row.implementation.name, phase)
                yield row

    def _ask(self, row: Row, what: str, **arguments: Any) -> Any:
        """The worker's answer; None if it failed, which ends the row."""
        begin = time.monotonic()
        answer = None
        if row.active:
            with self._failures_of(row):
                answer = _worker(row).request(what, self.suite.limits.timeout_s, **arguments)
        row.seconds += time.monotonic() - begin
        return answer

    @contextmanager
    def _failures_of(self, row: Row) -> Iterator[None]:
        try:
            yield
        except WorkerFailure as failure:
            row.fail(failure)

    def _record(self, case: Case, row: Row, referee: Row, statistics: Any) -> Record:
        status, reason = row.status, row.reason
        if status is None and row.agreement is not None and row.agreement.failures:
            status, reason = Status.DISAGREES, "; ".join(row.agreement.failures)
        if status is None and not row.opened.get("skips_work", False):
            reason = below_floor(row.samples, time_floors_ms(case, self.gpu))
            status = Status.IMPOSSIBLE if reason else None
        return self._new_record(
            case,
            row.implementation,
            status=status or Status.OK,
            reason=reason,
            grads_in_forward=row.opened.get("grads_in_forward", False),
            interpreted=row.opened.get("interpreted", False),
            times=Times(**row.samples, **row.settled) if row.opened else None,
            memory=row.memory,
            agreement=row.agreement,
            gemm_ms=referee.samples.get("gemm_ms", []),
            input_statistics=statistics or {},
            input_checksum=referee.opened.get("input_checksum"),
            source_sha256=row.opened.get("source_sha256"),
            duration_s=round(row.seconds, 3),
        )

    def _lower_bound(self, case: Case) -> Record:
        """What every implementation must hold at least: the loss after the forward, then the gradients."""
        loss, gradients = cost.loss_floor_bytes(case), cost.gradient_floor_bytes(case)
        floors = Memory(
            fwd_no_grad_peak_bytes=loss,
            fwd_peak_bytes=loss,
            bwd_peak_bytes=gradients,
            fwd_bwd_peak_bytes=gradients,
            retained_bytes=loss,
        )
        row = SuiteImplementation(name=LOWER_BOUND)
        return self._new_record(case, row, status=Status.OK, analytic=True, memory=floors)

    def _new_record(self, case: Case, implementation: SuiteImplementation, **learnt: Any) -> Record:
        return Record(
            suite=self.suite.name,
            case_id=case.id,
            case=case,
            implementation=implementation.name,
            path=implementation.path,
            options=implementation.options,
            expected=self.suite.expectation(implementation.name, case),
            reference=self.suite.reference,
            max_excess=self.suite.max_excess,
            gradient_floor_bytes=cost.gradient_floor_bytes(case),
            provenance=self.provenance,
            **learnt,
        )


def _worker(row: Row) -> Worker:
    if row.worker is None:
        raise AssertionError(f"{row.implementation.name} has no worker left to ask")
    return row.worker
