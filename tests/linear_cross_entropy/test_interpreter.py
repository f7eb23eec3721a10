"""Runs the checks that need a process of their own: TRITON_INTERPRET is read when triton is first imported.

The other tests of the repository share one process without it, so `interpreted.py` and `compiled.py` are not named
test_*.py and are collected only here, one pytest process each.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("file", "interpret"), [("interpreted.py", "1"), ("compiled.py", None)])
def test_in_a_process_of_its_own(file: str, interpret: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["OMP_NUM_THREADS"] = environment["OPENBLAS_NUM_THREADS"] = "1"  # tiles are small: threads only spin
    if interpret is not None:
        environment["TRITON_INTERPRET"] = interpret
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/linear_cross_entropy/{file}"]
    finished = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    print(finished.stdout[-1500:])
    assert finished.returncode == 0, finished.stdout[-6000:] + finished.stderr[-2000:]
    assert re.search(r"\d+ passed", finished.stdout) and "skipped" not in finished.stdout
