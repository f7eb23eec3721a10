"""`gate --pair`: base and head in the same rounds on the same GPU, from two trees to a comparison."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness import cost, provenance
from harness.case import Case, Device
from harness.comparison.comparison import Comparison
from harness.comparison.policy import Policy
from harness.comparison.runs import AGAIN
from harness.comparison.within import compare_within
from harness.gate.pair_runner import PairRunner
from harness.gate.pairing import Pair, paired_suite, pairs_of
from harness.gate.tree import MEASURING, Tree, UnusableTree
from harness.progress import Progress
from harness.record import Provenance, Record
from harness.running import runs
from harness.running.process import Worker, WorkerFailure
from harness.running.run_directory import RunDirectory
from harness.suite import Suite, Where

_SURVEY_TIMEOUT_S = 300.0  # importing every library on a cold disk


@dataclass(frozen=True)
class PairGate:
    """What is to be measured, of which trees, by which policy."""

    suite: Suite
    names: Sequence[str]  # the suite's rows, less --only and --skip
    where: Where
    base: Tree
    head: Tree
    policy: Policy
    directory: RunDirectory
    budget_s: float | None  # for the rounds of all cases; None: what the suite gives each

    def run(self) -> Comparison:
        """Measures, writes the records, compares.

        Raises UnusableTree or UnfitEnvironment before anything is measured.
        """
        logs = self.directory.logs
        pairs = pairs_of(self.suite, self.names, self.base.registry(), self.head.registry())
        self._check(pairs)
        machines = _environments(self._trees, logs)
        device = runs.choose_device(self.suite, machines["head"])
        origins = {f"@{tree.label}": self._provenance(tree, machines[tree.label], device) for tree in self._trees}
        runner = PairRunner(
            suite=paired_suite(self.suite, pairs, None),
            device=device,
            implementations=[],
            provenance=origins["@head"],
            device_bytes=runs.device_bytes(device, machines["head"]),
            gpu=machines["head"]["gpu"] if device == "cuda" else {},
            logs=logs,
            origins={f"@{tree.label}": tree.origin for tree in self._trees},
            margin=lambda name, case: self._margin(name, case, device),
        )
        records, again = self._measure(runner, pairs, origins, self._cases(device))
        compared = compare_within(records, [pair.names for pair in pairs], self.policy, again, also_new=True)
        return replace(compared, base=self.base.described, head=self.head.described)

    def _check(self, pairs: Sequence[Pair]) -> None:
        """Raises UnusableTree where a gate would compare nothing, or the running packages with themselves."""
        if not any(pair.head for pair in pairs):
            raise UnusableTree(f"head={self.head.ref} has none of {', '.join(self.names)}")
        packages = {row.location.partition(":")[0].partition(".")[0] for pair in pairs for row in pair.rows}
        measured = sorted({*packages, *provenance.PACKAGES} - {MEASURING})
        for tree in self._trees:
            if not tree.holds(measured):
                raise UnusableTree(
                    f"{tree.label}={tree.ref} holds nothing of what is measured: one of {', '.join(measured)}; "
                    "what would be measured in its name is the running harness's"
                )

    @property
    def _trees(self) -> tuple[Tree, Tree]:
        return self.base, self.head

    def _cases(self, device: Device) -> list[Case]:
        return [case for case in self.suite.cases_on(device) if self.where.matches(case)]

    def _margin(self, name: str, case: Case, device: Device) -> float | None:
        margins = self.policy.margins(name, case)
        return margins.time_margin if device in margins.time_devices else None

    def _measure(
        self, runner: PairRunner, pairs: Sequence[Pair], origins: dict[str, Provenance], cases: Sequence[Case]
    ) -> tuple[list[Record], list[Record]]:
        """The records of every case; and of what seemed slower, measured again with new processes."""
        measurement = runner.suite.measurement_on(runner.device)
        calls = 2 + measurement.minimum_rounds * (measurement.samples_per_turn + 1)
        guesses = [cost.estimated_seconds(case, 2 * len(pairs), calls, runner.device) for case in cases]
        left_s = self.budget_s
        records: list[Record] = []
        again: list[Record] = []
        with closing(runner), Progress(len(cases), sum(guesses), runner.logs).shown() as progress:
            for position, case in enumerate(cases):
                if runs.interrupted.is_set():
                    raise KeyboardInterrupt
                share = None if left_s is None else max(1.0, left_s / (len(cases) - position))
                runner.suite = paired_suite(self.suite, pairs, share)
                progress.start_case(position + 1, case.id, sum(guesses[position:]))
                begin = time.monotonic()
                more = position + 1 < len(cases)
                taken = self._recorded(self.directory, runner.run_pairs(case, pairs, progress.note, more), origins)
                records += taken
                if doubtful := self._doubtful(taken, pairs):
                    progress.note("all", "again", always=True)
                    second = runner.run_pairs(case, doubtful, progress.note, more)
                    again += self._recorded(RunDirectory(self.directory.path / AGAIN), second, origins)
                seconds = time.monotonic() - begin
                left_s = None if left_s is None else left_s - seconds
                progress.finish_case(taken, seconds)
        return records, again

    def _recorded(
        self, directory: RunDirectory, taken: Sequence[Record], origins: dict[str, Provenance]
    ) -> list[Record]:
        records = [_of_tree(record, origins) for record in taken]
        directory.path.mkdir(parents=True, exist_ok=True)
        directory.append(records)
        return records

    def _doubtful(self, records: Sequence[Record], pairs: Sequence[Pair]) -> list[Pair]:
        """Pairs of one case whose head is SLOWER, or whose A/A is off: so may two processes of the same code be."""
        by_name = {record.implementation: record for record in records}
        complete = [pair for pair in pairs if set(pair.names) <= by_name.keys()]
        if not complete:
            return []
        rows = compare_within(records, [pair.names for pair in complete], self.policy).rows
        return [pair for pair, row in zip(complete, rows, strict=True) if row.slower_or_unfit]

    def _provenance(self, tree: Tree, machine: dict[str, Any], device: str) -> Provenance:
        return Provenance(
            commit=tree.commit,
            dirty=tree.dirty,
            argv=provenance.command_line(),
            started=provenance.now(),
            device=device,
            device_name=runs.device_name(device, machine),
            environment=machine,
        )


def _environments(trees: Sequence[Tree], logs: Path) -> dict[str, dict[str, Any]]:
    """The machine as each tree's workers see it, by label. Raises UnusableTree if not even that works."""
    with ExitStack() as stack:
        workers = [stack.enter_context(closing(Worker(logs / f"{tree.label}.log", tree.origin))) for tree in trees]
        for worker in workers:
            worker.send("environment")
        found = {}
        for tree, worker in zip(trees, workers, strict=True):
            try:
                found[tree.label] = worker.receive("environment", _SURVEY_TIMEOUT_S)
            except WorkerFailure as failure:
                words = f"{tree.label}: a worker of {tree.described}, {tree.python}, cannot start: {failure.reason}"
                raise UnusableTree(words) from failure
        return found


def _of_tree(record: Record, origins: dict[str, Provenance]) -> Record:
    """The record with the code and the libraries of the tree that its row came from."""
    end = record.implementation[record.implementation.rindex("@") :]
    return record.model_copy(update={"provenance": origins[end]})
