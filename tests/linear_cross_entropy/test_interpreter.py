"""Checks that need a process of their own: TRITON_INTERPRET is read when triton is first imported.

So their files are not named test_*.py, and each has a pytest process.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.takes_s(280)
ROOT = Path(__file__).parents[2]
FILES = {
    "tail_interpreted.py": "1",
    "interpreted.py": "1",
    "tail_surfaces_interpreted.py": "1",
    "tail_groups_interpreted.py": "1",
    "compiled.py": None,
}  # file: its TRITON_INTERPRET


@pytest.mark.parametrize("file", FILES)
def test_in_a_process_of_its_own(file: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["OMP_NUM_THREADS"] = environment["OPENBLAS_NUM_THREADS"] = "1"  # tiles are small: threads only spin
    if FILES[file] is not None:
        environment["TRITON_INTERPRET"] = FILES[file]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/linear_cross_entropy/{file}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    print(done.stdout[-1500:])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"\d+ passed", done.stdout) and "skipped" not in done.stdout
