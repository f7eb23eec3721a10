"""Gates on a GPU: busy 3 % longer, 1 MiB, 2 % larger gradients, and the same code. Some five minutes on an H200."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SHOW = "examples/gate/show.py"  # with more gates of the same code, what reports/ shows


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        ("slowdown", "`ours` is SLOWER by "),
        ("memory", "`ours` takes MORE memory: fwd+bwd peak +1,048,576 bytes"),
        ("gradients", "`ours` disagrees, base is ok: grad_"),
    ],
)
def test_what_is_planted_is_found_and_named(plant: str, words: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SHOW, str(tmp_path), "--plants", plant], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert words in (tmp_path / plant / "gate.md").read_text()


def test_the_same_code_passes_each_time(tmp_path: Path) -> None:
    command = [sys.executable, SHOW, str(tmp_path), "--plants", "none", "--times", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SAME" in (tmp_path / "none-3" / "gate.md").read_text()
