"""kill -9 at random moments of an interleaved run, resumed: the records of an undisturbed run, no more and no fewer."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from harness.record import Record
from harness.running import runs, scheduler
from harness.running.run_directory import Plan, RunDirectory
from harness.suite import Suite
from tests.harness.fake_worker import FakeWorker

KILLS = 40
SUITE = Suite.model_validate(
    {
        "name": "tiny",
        "description": "d",
        "grid": {"tokens": [4, 8, 16], "hidden_size": 8, "vocab_size": 32, "label_smoothing": [0.0, 0.1]},
        "implementations": [
            "lower-bound",
            "baseline",
            *({"name": name, "path": "a:b"} for name in ("one", "dies", "refuses", "full")),
        ],
        "measurement": {"case_budget_s": 0.001},
    }
)
PLAN = Plan(
    suite=SUITE,
    device="cuda",
    device_name="a GPU",
    implementations=[row.name for row in SUITE.implementations],
)
MACHINE = {"gpu": {"name": "a GPU", "memory_bytes": 80 << 30}}


def measure(directory: RunDirectory) -> None:
    """All that is left of the run, in this process."""
    assert runs.execute(directory, PLAN, MACHINE, "a revision", None) == []


def killed_after(directory: RunDirectory, seconds: float) -> bool:
    """Whether a process that measures was still at it when it was killed."""
    child = os.fork()
    if child == 0:
        try:
            measure(directory)
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def facts(record: Record) -> tuple[Any, ...]:
    """Everything about a record but times and when it was made."""
    times = record.times
    played = None if times is None else (times.round, times.position)
    again = None if record.again is None else (record.again.round, record.again.position)
    probes = None if record.probes is None else (record.probes.round, record.probes.position)
    names = ("case_id", "implementation", "status", "reason", "memory", "agreement", "input_checksum")
    return (*(getattr(record, name) for name in names), played, again, probes)


@pytest.fixture(autouse=True)
def fake_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "Worker", FakeWorker)
    monkeypatch.setattr(FakeWorker, "pause_s", 0.0002)


def test_the_records_are_those_of_an_undisturbed_run(tmp_path: Path) -> None:
    whole = RunDirectory(tmp_path / "whole")
    whole.create(PLAN)
    begin = time.monotonic()
    measure(whole)
    a_case = (time.monotonic() - begin) / len(PLAN.cases())
    expected = [facts(record) for record in whole.records()]
    assert len(expected) == len(set(map(str, expected))) == 6 * 6

    moments = random.Random(0)
    kills, finished = 0, 0
    while kills < KILLS:
        directory = RunDirectory(tmp_path / f"run-{kills}")
        directory.create(PLAN)
        while killed_after(directory, moments.uniform(0, 3 * a_case)):
            kills += 1
            assert _lines(directory) <= 6 * 6
        assert [facts(record) for record in directory.records()] == expected
        finished += 1
    assert kills >= KILLS and finished >= 1


def _lines(directory: RunDirectory) -> int:
    return directory.records_path.read_bytes().count(b"\n") if directory.records_path.exists() else 0
