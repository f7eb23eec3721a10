"""Commands as the documentation shows them, against what the harness has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.cli import Format
from harness.suite import SuiteImplementation
from harness.training.config import Curve
from harness.training.training_run import TrainingRun

README = Path("README.md").read_text()


def test_every_format_of_a_report_is_named() -> None:
    (line,) = re.findall(r"^.* -m harness report .*$", README, re.MULTILINE)
    assert set(re.findall(r"\b[a-z]+\b", line)) >= {each.value for each in Format}


@pytest.mark.parametrize("document", ["README.md", "docs/inputs.md", "docs/training.md"])
def test_capture_is_given_what_a_training_writes(document: str) -> None:
    given = re.findall(r"-m harness capture ((?:runs/)?DIR\S+) --out", Path(document).read_text())
    (path,) = ("runs/" + path.removeprefix("runs/").replace("LOSS", "ours").replace("BETA", "0.1") for path in given)
    assert Path(path) == TrainingRun(Path("runs/DIR")).log(Curve(SuiteImplementation(name="ours"), 0.1)).path
