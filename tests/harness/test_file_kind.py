"""A file that is given to the command of another kind is sent to its own, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.comparison.policy_file import load_policy
from harness.suite_file import load_suite
from harness.training.config import load_training
from harness.yaml_source import InvalidFile

SUITE, TRAINING, POLICY = Path("suites/quick.yaml"), Path("examples/training-tiny.yaml"), Path("policies/default.yaml")


@pytest.mark.parametrize(
    ("load", "file", "words"),
    [
        (load_suite, TRAINING, f"is a training, not a suite; what reads it: python -m harness train {TRAINING}"),
        (load_suite, POLICY, f"is a policy, not a suite; what reads it: python -m harness policy {POLICY}"),
        (load_training, SUITE, f"is a suite, not a training; what reads it: python -m harness run {SUITE}"),
        (load_training, POLICY, f"is a policy, not a training; what reads it: python -m harness policy {POLICY}"),
        (load_policy, SUITE, f"is a suite, not a policy; what reads it: python -m harness run {SUITE}"),
        (load_policy, TRAINING, f"is a training, not a policy; what reads it: python -m harness train {TRAINING}"),
    ],
)
def test_the_right_command_is_named(load, file: Path, words: str) -> None:
    with pytest.raises(InvalidFile) as caught:
        load(file)
    assert str(caught.value) == f"{file}: {words}"


def test_a_file_with_mistakes_of_its_own_kind_keeps_them(tmp_path: Path) -> None:
    file = tmp_path / "suite.yaml"
    file.write_text("name: x\nimplementations: [ours]\nmodle: {}\n")
    with pytest.raises(InvalidFile, match="unknown key 'modle'"):
        load_suite(file)
