"""Test files that need a process of their own, run one after the other beside the other tests.

TRITON_INTERPRET is read when triton is first imported, so these files are not named test_*.py, and each has a pytest
process. They take minutes: conftest.py begins them before the first test, test_interpreter.py asks for their results
after the last. One at a time, for two would share triton's cache and leave the other tests no core of two.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = {
    "tail_interpreted.py": "1",
    "interpreted.py": "1",
    "tail_surfaces_interpreted.py": "1",
    "tail_groups_interpreted.py": "1",
    "compiled.py": None,
}  # file: its TRITON_INTERPRET


class OwnProcesses:
    """Some of FILES under way: a process that runs one pytest after the other.

    A process and no thread of this one: other tests fork.
    """

    def __init__(self, files: Sequence[str], directory: Path) -> None:
        self._directory = directory
        command = [sys.executable, "-m", "tests.linear_cross_entropy.own_processes", str(directory), *files]
        # in a group of its own, so that `stop` ends the pytest that is under way as well
        self._process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)

    def result(self, file: str, timeout_s: float = 900.0) -> tuple[int, str]:
        """Exit code and output of a file's pytest; waits for it. TimeoutError; RuntimeError where nobody runs it."""
        code, deadline = self._directory / f"{file}.code", time.monotonic() + timeout_s
        while not code.exists():
            ended = self._process.poll() is not None
            if ended and not code.exists():
                raise RuntimeError(f"{file}: the process that was to run it ended with {self._process.returncode}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"{file}: no result within {timeout_s:g} s")
            time.sleep(0.05)
        return int(code.read_text()), (self._directory / f"{file}.txt").read_text()

    def stop(self) -> None:
        """Ends what is still under way."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, 9)
        self._process.wait()


def run(file: str, directory: Path) -> None:
    """Writes what a file's pytest prints to `file`.txt, then its exit code to `file`.code."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["OMP_NUM_THREADS"] = environment["OPENBLAS_NUM_THREADS"] = "1"  # tiles are small: threads only spin
    if FILES[file] is not None:
        environment["TRITON_INTERPRET"] = FILES[file]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/linear_cross_entropy/{file}"]
    with (directory / f"{file}.txt").open("w") as stdout:
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=stdout, stderr=subprocess.STDOUT, check=False)
    unfinished = directory / f"{file}.code.unfinished"
    unfinished.write_text(str(done.returncode))
    unfinished.rename(directory / f"{file}.code")


if __name__ == "__main__":
    for name in sys.argv[2:]:
        run(name, Path(sys.argv[1]))
