"""The example that shows what gates find: its plants still have a place in ours.py, and are what they say."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path("examples/gate/show.py")


@pytest.fixture
def show() -> ModuleType:
    spec = importlib.util.spec_from_file_location("show", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_plant_has_its_place(show: ModuleType, tmp_path: Path) -> None:
    original = Path("implementations/ours.py").read_text()
    for plant in show.PLANTS:
        planted = (show.planted_tree(plant, tmp_path / plant) / "implementations" / "ours.py").read_text()
        ast.parse(planted)
        changed = [line for line in planted.splitlines() if line not in original.splitlines()]
        assert changed[0].strip() == "return _planted(self, value, input, linear_weight, target)"
    assert set(show.EXPECTED) == set(show.PLANTS)


def test_planted_gradients_are_found_on_a_cpu_and_the_same_code_passes(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(tmp_path / "out"), "--plants", "gradients", "none", "--times", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert "| gradients | 3 | 3 |" in summary and "| none | 0 | 0 |" in summary
    assert "`ours` disagrees, base is ok" in (tmp_path / "out" / "gradients" / "gate.md").read_text()
