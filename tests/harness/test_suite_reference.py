"""The rows of a suite with a part of their own: the reference, and the one that is measured twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.suite import Suite
from harness.suite_file import load_suite
from harness.yaml_source import InvalidFile

SUITE = """\
name: good
description: one case
grid: {tokens: 8, hidden_size: 4, vocab_size: 16}
implementations: [lower-bound, baseline, liger]
"""


def loaded(folder: Path, text: str) -> Suite:
    path = folder / "suite.yaml"
    path.write_text(text)
    return load_suite(path)


def test_the_reference_is_measured_twice_unless_another_row_is(tmp_path: Path) -> None:
    assert loaded(tmp_path, SUITE).measured_twice == "baseline"
    assert loaded(tmp_path, SUITE + "reference: liger\n").measured_twice == "liger"
    assert loaded(tmp_path, SUITE + "twice: liger\n").measured_twice == "liger"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("twice: lige", "5: twice: 'lige' is not among the implementations, did you mean 'liger'?"),
        ("twice: lower-bound", "5: twice: 'lower-bound' runs nothing"),
        ("reference: lige", "5: reference: 'lige' is not among the implementations, did you mean 'liger'?"),
        ("reference: lower-bound", "5: reference: 'lower-bound' runs nothing"),
    ],
)
def test_both_must_be_rows_that_run(tmp_path: Path, line: str, expected: str) -> None:
    with pytest.raises(InvalidFile) as caught:
        loaded(tmp_path, f"{SUITE}{line}\n")
    (mistake,) = caught.value.mistakes
    assert str(mistake).removeprefix(f"{tmp_path / 'suite.yaml'}:").startswith(expected)


@pytest.mark.parametrize(
    "line", ["", "reference: baseline", "expectations: [{implementation: baseline, status: any, reason: r}]"]
)
def test_a_typo_is_not_recommended(tmp_path: Path, line: str) -> None:
    """Of a row with an unknown name nobody knows whether it is the reference."""
    with pytest.raises(InvalidFile) as caught:
        loaded(tmp_path, f"{SUITE.replace('baseline', 'baselin')}{line}\n")
    (mistake,) = caught.value.mistakes
    assert "no implementation is called 'baselin', did you mean 'baseline'?" in str(mistake)


def test_a_row_of_ones_own_is_no_typo(tmp_path: Path) -> None:
    own = SUITE.replace("baseline", "{name: baselin, path: 'a.b:c'}")
    with pytest.raises(InvalidFile, match="reference: 'baseline' is not among the implementations"):
        loaded(tmp_path, own)
    with pytest.raises(InvalidFile, match="reference: 'lower-bound' runs nothing"):
        loaded(tmp_path, SUITE.replace("baseline", "baselin") + "reference: lower-bound\n")
