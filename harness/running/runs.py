"""Runs: the cases of a suite, one after the other, into a run directory, until done, out of budget or interrupted."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from harness import cost, provenance
from harness.case import Case, Device
from harness.exits import DISAGREES, FAILED_CELL
from harness.progress import Progress
from harness.record import FAILED, Provenance, Record, Status
from harness.running.process import Worker, WorkerFailure
from harness.running.run_directory import Plan, RunDirectory
from harness.running.scheduler import CaseRunner
from harness.suite import Suite, SuiteImplementation
from implementations.registry import LOWER_BOUND

_SURVEY_TIMEOUT_S = 300.0  # importing every library on a cold disk


interrupted = threading.Event()  # set by the command line's signal handler


class UnfitEnvironment(Exception):
    """This machine cannot measure what was asked for; one clear sentence."""


class InvalidOptions(ValueError):
    """Options of a row that its implementation refuses; one clear sentence."""


def environment(log: Path) -> dict[str, Any]:
    """The machine as a worker sees it. Raises UnfitEnvironment if not even that works."""
    worker = Worker(log)
    try:
        return worker.request("environment", _SURVEY_TIMEOUT_S)
    except WorkerFailure as failure:
        raise UnfitEnvironment(f"a worker could not describe this machine: {failure.reason} (log: {log})") from failure
    finally:
        worker.kill()


def available(log: Path) -> dict[str, str | None]:
    """For every registered implementation None, or why it cannot be used here. Raises WorkerFailure."""
    worker = Worker(log)
    try:
        return worker.request("available", _SURVEY_TIMEOUT_S)
    finally:
        worker.kill()


def cells(plan: Plan, log: Path) -> list[tuple[Case, str, str | None]]:
    """Every cell of the plan with None, or the reason why it will not run."""
    cases = plan.cases()
    reasons: dict[str, list[str | None]] = {LOWER_BOUND: [None] * len(cases)}
    worker = Worker(log)
    try:
        for row in chosen(plan):
            if row.name != LOWER_BOUND:
                try:
                    reasons[row.name] = worker.request(
                        "supported", _SURVEY_TIMEOUT_S, **_asked(row, cases, plan.device)
                    )["reasons"]
                except WorkerFailure as failure:  # this row would fail; the next gets a fresh worker
                    reasons[row.name] = [failure.reason] * len(cases)
                    worker = Worker(log)
    finally:
        worker.kill()
    return [(case, row.name, reasons[row.name][k]) for k, case in enumerate(cases) for row in chosen(plan)]


def _asked(row: SuiteImplementation, cases: Sequence[Case], device: str) -> dict[str, Any]:
    return {
        "path": row.location,
        "options": row.options,
        "cases": [case.model_dump(mode="json") for case in cases],
        "device": device,
    }


def check_options(plan: Plan, log: Path) -> None:
    """Raises InvalidOptions if a row's options are not those of its implementation: better now than after an hour."""
    for row in chosen(plan):
        if row.options and row.name != LOWER_BOUND:
            worker = Worker(log)
            with closing(worker), suppress(WorkerFailure):  # whatever else is wrong with it, its row will say
                answer = worker.request("options_mistake", _SURVEY_TIMEOUT_S, path=row.location, options=row.options)
                if answer["mistake"] is not None:
                    raise InvalidOptions(f"implementation '{row.name}': {answer['mistake']}")


def choose_device(suite: Suite, machine: dict[str, Any]) -> Device:
    """The device that the suite asks for. Raises UnfitEnvironment if this machine has none."""
    if suite.device == "cpu" or (suite.device == "auto" and not machine["cuda_available"]):
        return "cpu"
    if not machine["cuda_available"]:
        raise UnfitEnvironment(
            f"suite '{suite.name}' needs a CUDA GPU and torch sees none here; suites/quick.yaml runs on a CPU"
        )
    return "cuda"


def device_name(device: str, machine: dict[str, Any]) -> str:
    """How records call the device."""
    if device == "cpu":
        return f"CPU, {machine['cpu_cores']} cores"
    return str(machine["gpu"]["name"]) if machine["cuda_available"] else "a CUDA GPU"


def device_bytes(device: str, machine: dict[str, Any]) -> int:
    """The device's whole memory."""
    if device == "cuda":
        return int(machine["gpu"]["memory_bytes"])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def estimates(plan: Plan, cases: Sequence[Case]) -> list[float]:
    """Guessed seconds of each case; see `harness.cost`."""
    measurement = plan.suite.measurement_on(plan.device)
    calls = 10  # to settle, and eight for agreement
    if "time" in measurement.phases:
        calls += measurement.minimum_rounds * (measurement.samples_per_turn + 1)
    return [cost.estimated_seconds(case, len(plan.implementations), calls, plan.device) for case in cases]


def execute(
    directory: RunDirectory,
    plan: Plan,
    machine: dict[str, Any],
    revision: str | None,
    budget_s: float | None,
    argv: list[str] | None = None,
) -> list[Case]:
    """Measures the cases of `plan` that `directory` lacks. Stops before one that would not fit `budget_s`.

    `argv` is the command to record; None: the harness's own. Returns the cases that are left for a later call.
    """
    begin = time.monotonic()
    done = directory.complete_cases(plan)
    cases = plan.cases()
    todo = [case for case in cases if case.id not in done]
    commit, dirty = provenance.revision(given=revision)
    runner = CaseRunner(
        suite=plan.suite,
        device=plan.device,
        implementations=chosen(plan),
        provenance=Provenance(
            commit=commit,
            dirty=dirty,
            argv=provenance.command_line() if argv is None else argv,
            started=provenance.now(),
            device=plan.device,
            device_name=plan.device_name,
            environment=machine,
        ),
        device_bytes=device_bytes(plan.device, machine),
        gpu=machine["gpu"] if plan.device == "cuda" else {},
        logs=directory.logs,
        deadline=None if budget_s is None else begin + budget_s,
    )
    guesses = estimates(plan, todo)
    took, guessed = 0.0, 0.0
    with closing(runner), Progress(len(cases), sum(guesses), directory.logs).shown() as progress:
        for position, case in enumerate(todo):
            if interrupted.is_set():
                raise KeyboardInterrupt
            pace = took / guessed if guessed else 1.0  # this machine against the guesses
            if budget_s is not None and position and time.monotonic() - begin + pace * guesses[position] > budget_s:
                return todo[position:]
            progress.start_case(len(cases) - len(todo) + position + 1, case.id, pace * sum(guesses[position:]))
            case_begin = time.monotonic()
            records = runner.run(case, progress.note, more=position + 1 < len(todo))
            directory.append(records)
            seconds = time.monotonic() - case_begin
            took, guessed = took + seconds, guessed + guesses[position]
            progress.finish_case(records, seconds)
    return []


def chosen(plan: Plan) -> list[SuiteImplementation]:
    """The suite's rows that the plan keeps, in the suite's order."""
    return [row for row in plan.suite.implementations if row.name in plan.implementations]


def exit_code(records: Sequence[Record]) -> int:
    """0 if every row is ok or as expected; 4 if a cell failed unexpectedly; 3 if one disagrees unexpectedly."""
    unexpected = {record.status for record in records if not record.as_expected}
    if unexpected & FAILED:
        return FAILED_CELL
    return DISAGREES if unexpected & {Status.DISAGREES, Status.IMPOSSIBLE} else 0
