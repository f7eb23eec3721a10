"""Workers as processes: answers, silence, death."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from harness.record import Status
from harness.running.process import Worker, WorkerFailure


@pytest.fixture
def worker(tmp_path: Path):
    worker = Worker(tmp_path / "logs" / "worker.log")
    yield worker
    worker.kill()


def test_it_describes_the_machine(worker: Worker) -> None:
    described = worker.request("environment", 120)
    assert described["packages"]["torch"]
    assert described["packages"]["liger-kernel"]
    assert described["cpu_cores"] == os.cpu_count()


def test_silence_is_a_timeout_and_the_worker_is_gone(worker: Worker) -> None:
    with pytest.raises(WorkerFailure, match=r"no answer to 'environment' within 0.01 s") as caught:
        worker.request("environment", 0.01)
    assert caught.value.status is Status.TIMEOUT
    with pytest.raises(ProcessLookupError):
        os.kill(worker.pid, 0)


def test_death_names_the_signal(worker: Worker) -> None:
    threading.Timer(0.2, os.kill, (worker.pid, signal.SIGKILL)).start()
    with pytest.raises(WorkerFailure, match=r"killed by SIGKILL, .* during 'environment'") as caught:
        worker.request("environment", 120)
    assert caught.value.status is Status.CRASHED


def test_an_exception_ends_the_worker_and_is_logged(worker: Worker, tmp_path: Path) -> None:
    with pytest.raises(WorkerFailure, match="AttributeError") as caught:
        worker.request("nonsense", 120)
    assert caught.value.status is Status.CRASHED
    assert "Traceback" in (tmp_path / "logs" / "worker.log").read_text()


def test_what_it_is_told_has_no_answer_and_cannot_end_it(worker: Worker) -> None:
    worker.tell("nonsense")
    worker.tell("warm", path="implementations.baseline:missing", options={}, device="cpu", context=False)
    worker.tell("warm", path="implementations.baseline:baseline", options={}, device="cpu", context=True)
    assert worker.request("environment", 120)["packages"]["torch"]


def test_a_worker_dies_with_its_parent(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # a parent that is killed without a word
        os.write(writing, str(Worker(tmp_path / "worker.log").pid).encode())
        time.sleep(60)
        os._exit(0)
    pid = int(os.read(reading, 32))
    time.sleep(1.0)  # until it has asked the kernel for it
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1][:3]:
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError("the worker outlived its parent")


def test_whether_it_still_runs(tmp_path: Path) -> None:
    worker = Worker(tmp_path / "log")
    assert worker.running
    worker.kill()
    assert not worker.running
