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

pytestmark = pytest.mark.takes_s(120)
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
implementations: [lower-bound, baseline, {name: right, path: "tests.harness.planted:slow"}]
measurement: {phases: [agreement]}
"""


def test_a_run_killed_anywhere_resumes_to_the_same_records(tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(TINY)
    directory = tmp_path / "run"
    moments, command, sizes = random.Random(0), ["run", str(suite), "--out", str(directory)], [0]
    for _ in range(4):
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
    assert len(set(sizes)) == 5  # each kill hit a run that was under way
    undisturbed = tmp_path / "undisturbed"
    assert harness("run", suite, "--out", undisturbed).returncode == 0

    def facts(path: Path) -> list[tuple[Any, ...]]:
        return [(r.case_id, r.implementation, r.status, r.agreement, r.input_checksum) for r in records(path)]

    assert facts(directory) == facts(undisturbed)
    assert len(facts(directory)) == 6 * 3


def test_an_interleaved_run_killed_anywhere_resumes_to_the_same_records(tmp_path: Path) -> None:
    """With real workers and times; test_killed_anywhere.py has many more moments."""
    suite = tmp_path / "suite.yaml"
    timed = TINY.replace("phases: [agreement]", "minimum_rounds: 10, case_budget_s: 0.1").replace("slow", "right")
    suite.write_text(timed.replace("tokens: [4, 8]", "tokens: 4").replace("[0.0, 0.1, 0.5]", "[0.0, 0.1]"))
    undisturbed, directory = tmp_path / "undisturbed", tmp_path / "run"
    begin = time.monotonic()
    assert harness("run", suite, "--out", undisturbed).returncode == 0
    a_case = (time.monotonic() - begin) / 2
    moments, command, kills = random.Random(1), ["run", str(suite), "--out", str(directory)], 0
    for _ in range(4):
        process = subprocess.Popen([*HARNESS, *command], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while not (directory / "plan.json").exists():
            time.sleep(0.01)
        time.sleep(moments.uniform(0.3, 1.5) * a_case)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() < 0
        command = ["run", "--resume", str(directory)]
    assert harness(*command).returncode == 0
    assert kills > 1

    def facts(path: Path) -> list[tuple[Any, ...]]:
        return [
            (
                *(r.case_id, r.implementation, r.status, r.agreement, r.input_checksum),
                *(t and (t.round, t.position) for t in (r.times, r.again, r.probes)),
            )
            for r in records(path)
        ]

    assert facts(directory) == facts(undisturbed)
    assert len(facts(directory)) == 2 * 3


def _size(directory: Path) -> int:
    return len(records(directory)) if (directory / "records.jsonl").exists() else 0


def test_a_finished_run_measures_nothing_twice(tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(TINY)
    selected = ["--where", "tokens=4", "--where", "label_smoothing=0|0.5", "--skip", "right"]
    first = harness("run", suite, "--out", tmp_path / "run", *selected)
    before = (tmp_path / "run" / "records.jsonl").read_bytes()
    assert first.returncode == 0, first.stderr
    assert before.count(b"\n") == 4
    again = harness("run", "--resume", tmp_path / "run")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "run" / "records.jsonl").read_bytes() == before


def test_a_spent_budget_is_resumable(tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(TINY)
    first = harness("run", suite, "--out", tmp_path / "run", "--budget", "1", "--where", "tokens=4")
    assert first.returncode == 130, first.stderr
    assert f"--resume {tmp_path / 'run'}" in first.stderr.replace("\n", " ")
    assert len(records(tmp_path / "run")) == 3  # one case is always measured, or no budget would ever get anywhere
    assert harness("run", "--resume", tmp_path / "run").returncode == 0
    assert len(records(tmp_path / "run")) == 9


# Ctrl-C is ignored where these tests themselves run as a background job. No preexec_fn: a worker of xdist has threads.
HEEDING_CTRL_C = """\
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_by_the_user(tmp_path: Path, signal_number: signal.Signals) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(TINY)
    process = subprocess.Popen(
        [sys.executable, "-c", HEEDING_CTRL_C, "-m", "harness", "run", str(suite), "--out", str(tmp_path / "run")],
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
