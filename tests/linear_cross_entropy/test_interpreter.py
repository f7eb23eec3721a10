"""Runs the checks that need a process of their own: TRITON_INTERPRET is read when triton is first imported.

The other tests of the repository share one process without it, so `interpreted.py` and `compiled.py` are not named
test_*.py and are collected only here, one pytest process each. They are the longest tests, and run side by side.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = {
    "interpreted.py": "1",
    "tail_interpreted.py": "1",
    "tail_surfaces_interpreted.py": "1",
    "tail_groups_interpreted.py": "1",
    "compiled.py": None,
}  # file: its TRITON_INTERPRET

Started = dict[str, tuple["subprocess.Popen[str]", Path]]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """Every file's process and what it prints to."""
    directory, processes = tmp_path_factory.mktemp("own-processes"), {}
    for file, interpret in FILES.items():
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        environment["OMP_NUM_THREADS"] = environment["OPENBLAS_NUM_THREADS"] = "1"  # tiles are small: threads only spin
        if interpret is not None:
            environment["TRITON_INTERPRET"] = interpret
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/linear_cross_entropy/{file}"]
        output = directory / f"{file}.txt"
        with output.open("w") as stdout:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=stdout, stderr=subprocess.STDOUT, text=True
            )
        processes[file] = process, output
    yield processes
    for process, _ in processes.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize("file", FILES)
def test_in_a_process_of_its_own(file: str, started: Started) -> None:
    process, output = started[file]
    code = process.wait(timeout=600)
    printed = output.read_text()
    print(printed[-1500:])
    assert code == 0, printed[-6000:]
    assert re.search(r"\d+ passed", printed) and "skipped" not in printed
