"""Liger on a CPU: in Triton's interpreter, so in one subprocess for all checks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.implementations.liger_in_interpreter import NAMES, SETTINGS, key

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def findings() -> dict[str, Any]:
    finished = subprocess.run(
        [sys.executable, "-m", "tests.implementations.liger_in_interpreter"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    found: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("ignored", "bias"), [(0, True), (5, False)])
def test_agrees_with_the_contract(findings: Any, name: str, settings: Any, ignored: int, bias: bool) -> None:
    assert findings["errors"][key(name, settings, ignored, bias)] <= 1e-5


def test_with_every_row_ignored_the_mean_is_zero_as_documented(findings: Any) -> None:
    """torch gives nan. When this fails Liger has changed, and the docstring with it."""
    assert findings["all_ignored_mean"] == 0
    assert findings["all_ignored_gradients_are_zero"]


def test_the_loss_is_fp32_for_bf16_inputs(findings: Any) -> None:
    assert findings["bf16_loss"] == "torch.float32"


def test_a_forward_without_grad_gives_a_loss_without_grad(findings: Any) -> None:
    assert findings["no_grad_loss_requires_grad"] is False
