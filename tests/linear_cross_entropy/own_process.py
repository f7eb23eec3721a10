"""Checks that need a process of their own: TRITON_INTERPRET is read when triton is first imported.

So their files are not named test_*.py, and each has a pytest process, which the test_*.py of the same name starts: one
each, for processes that share the tests take whole files.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def check(file: str, *, interpreted: bool) -> None:
    """Runs the tests of `file`, with or without Triton's interpreter: all must pass, and none be skipped."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["OMP_NUM_THREADS"] = environment["OPENBLAS_NUM_THREADS"] = "1"  # tiles are small: threads only spin
    if interpreted:
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/linear_cross_entropy/{file}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    print(done.stdout[-1500:])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"\d+ passed", done.stdout) and "skipped" not in done.stdout
