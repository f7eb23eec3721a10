"""Runs that were killed, interrupted or out of budget, and what resuming them leaves."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.harness.running import HARNESS, harness, records

pytestmark = pytest.mark.takes_s(60)
TINY = """\
name: tiny
description: many cases that take no time
device: cpu
grid:
  tokens: [4, 8]
  hidden_size: 8
  vocab_size: 32
  dtype: float32
  inputs: gaussian
  label_smoothing: [0.0, 0.1, 0.5]
implementations:
  - lower-bound
  - baseline
  - {name: right, path: "tests.harness.planted:slow"}
  - {name: left-out, path: "tests.harness.planted:raises"}
measurement: {phases: [agreement]}
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suite") / "suite.yaml"
    path.write_text(TINY)
    return path


SELECTED = ["--where", "label_smoothing=0|0.5", "--skip", "left-out"]  # what a resumed run must remember by itself


@pytest.fixture(scope="module")
def undisturbed(suite: Path) -> Path:
    directory = suite.parent / "undisturbed"
    done = harness("run", suite, "--out", directory, *SELECTED)
    assert done.returncode == 0, done.stderr
    return directory


def test_a_run_killed_anywhere_resumes_to_the_same_records(suite: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Twice, with real workers; test_killed_anywhere.py has many more moments."""
    directory = tmp_path / "run"
    moments, command, sizes = random.Random(0), ["run", str(suite), "--out", str(directory), *SELECTED], [0]
    for _ in range(2):
        process = subprocess.Popen([*HARNESS, *command], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while _size(directory) == sizes[-1] and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.6))  # anywhere in the case that follows
        process.send_signal(signal.SIGKILL)
        process.wait()
        sizes.append(_size(directory))
        command = ["run", "--resume", str(directory)]
    last = harness(*command)
    assert last.returncode == 0, last.stderr
    assert len({*sizes, 4 * 3}) == 4  # each kill hit a run that was under way

    def facts(path: Path) -> list[tuple[Any, ...]]:
        return [(r.case_id, r.implementation, r.status, r.agreement, r.input_checksum) for r in records(path)]

    assert facts(directory) == facts(undisturbed)
    assert len(facts(directory)) == 4 * 3


def test_an_interleaved_run_killed_anywhere_resumes_to_the_same_records(tmp_path: Path) -> None:
    """With real workers and times, a row twice and the referee; killed in its first case and in its second.

    test_killed_anywhere.py has more rows and many more moments.
    """
    suite = tmp_path / "suite.yaml"
    timed = TINY.replace("phases: [agreement]", "minimum_rounds: 10, case_budget_s: 0.1")
    suite.write_text(timed.replace("tokens: [4, 8]", "tokens: 4").replace("[0.0, 0.1, 0.5]", "[0.0, 0.1]"))
    undisturbed, directory = tmp_path / "undisturbed", tmp_path / "run"
    options = ["--only", "lower-bound", "--only", "baseline"]
    begin = time.monotonic()
    assert harness("run", suite, "--out", undisturbed, *options).returncode == 0
    a_case = (time.monotonic() - begin) / 2
    command = ["run", str(suite), "--out", str(directory), *options]
    for written, moment in ((0, 0.6), (2, 0.2)):  # records that are there; early enough where a core has come free
        process = subprocess.Popen([*HARNESS, *command], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while (not (directory / "plan.json").exists() or _size(directory) < written) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moment * a_case)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL and _size(directory) < 2 * 2  # under way
        command = ["run", "--resume", str(directory)]
    assert harness(*command).returncode == 0

    def facts(path: Path) -> list[tuple[Any, ...]]:
        return [
            (
                *(r.case_id, r.implementation, r.status, r.agreement, r.input_checksum),
                *(t and (t.round, t.position) for t in (r.times, r.again, r.probes)),
            )
            for r in records(path)
        ]

    assert facts(directory) == facts(undisturbed)
    assert len(facts(directory)) == 2 * 2


def _size(directory: Path) -> int:
    return len(records(directory)) if (directory / "records.jsonl").exists() else 0


def test_a_finished_run_measures_nothing_twice(undisturbed: Path) -> None:
    before = (undisturbed / "records.jsonl").read_bytes()
    assert before.count(b"\n") == 4 * 3
    again = harness("run", "--resume", undisturbed)
    assert again.returncode == 0, again.stderr
    assert (undisturbed / "records.jsonl").read_bytes() == before


def test_a_spent_budget_is_resumable(suite: Path, tmp_path: Path) -> None:
    selected = ["--where", "tokens=4", "--only", "baseline", "--only", "lower-bound"]
    first = harness("run", suite, "--out", tmp_path / "run", "--budget", "1", *selected)
    assert first.returncode == 130, first.stderr
    assert f"--resume {tmp_path / 'run'}" in first.stderr.replace("\n", " ")
    assert len(records(tmp_path / "run")) == 2  # one case is always measured, or no budget would ever get anywhere
    assert harness("run", "--resume", tmp_path / "run").returncode == 0
    assert len(records(tmp_path / "run")) == 3 * 2


# Ctrl-C is ignored where these tests themselves run as a background job. No preexec_fn: a worker of xdist has threads.
HEEDING_CTRL_C = """\
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_by_the_user(suite: Path, tmp_path: Path, signal_number: signal.Signals) -> None:
    command = ["-m", "harness", "run", str(suite), "--out", str(tmp_path / "run"), "--only", "right"]
    process = subprocess.Popen(
        [sys.executable, "-c", HEEDING_CTRL_C, *command],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    while not (tmp_path / "run" / "records.jsonl").exists():
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal_number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"--resume" in stderr
    assert b"Traceback" not in stderr
