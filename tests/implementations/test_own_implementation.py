"""The example of the documentation works as it stands."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch

from harness.case import Case
from harness.suite_file import load_suite
from implementations.registry import load
from tests.harness.running import harness, records
from tests.implementations.reference import loss_and_gradients, make_tensors, worst_error

SUITE = Path(__file__).parents[2] / "examples" / "own_implementation.yaml"
CONTRIBUTING = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
OWN = [row for row in load_suite(SUITE).implementations if row.path]


@pytest.mark.parametrize("row", OWN, ids=lambda row: row.name)
def test_agrees_with_the_contract(row) -> None:
    loss_function = load(row.path).build(**row.options)
    for smoothing, softcap, bias, reduction in itertools.product(
        (0.0, 0.1), (None, 3.0), (False, True), ("mean", "sum", "none")
    ):
        settings = {"label_smoothing": smoothing, "softcap": softcap, "reduction": reduction}
        assert worst_error(loss_function, make_tensors(256, ignored=70, bias=bias), **settings) <= 1e-5, settings
    loss, *gradients = loss_and_gradients(loss_function, make_tensors(ignored=16), torch.float32)
    assert loss.isnan()
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_every_device_has_a_case_that_each_refuses_or_takes(device) -> None:
    """The suite shows both: a row with numbers, and one that is unsupported with its reason."""
    refused = [load(row.path).supports(case, device) for row in OWN for case in load_suite(SUITE).cases_on(device)]
    assert refused.count(None) == 6  # all four cases of the function, two of the implementation
    assert set(refused) == {None, "the number of tokens is no multiple of its chunk, 64"}


def test_a_wrong_option_is_named() -> None:
    build = load("examples.own_implementation:even_chunks").build
    with pytest.raises(ValueError, match="chunks_at_once"):
        build(chunks_at_once=0)
    with pytest.raises(TypeError, match="chunk_size"):
        build(chunk_size=3)


def test_the_plain_function_supports_everything() -> None:
    case = Case(tokens=130, hidden_size=64, vocab_size=1000, softcap=30.0, reduction="none", linear_bias=True)
    assert load("examples.own_implementation:chunked_loss").supports(case, "cpu") is None


def test_what_contributing_shows_runs_as_it_stands(tmp_path: Path) -> None:
    """The two files that the page names in their first lines, in a directory of their own."""
    for name in ("my_losses.py", "my_suite.yaml"):
        (block,) = re.findall(rf"```\w+\n(# {re.escape(name)}\n.*?)```", CONTRIBUTING, re.DOTALL)
        (tmp_path / name).write_text(block)
    suite = load_suite(tmp_path / "my_suite.yaml")
    assert suite.devices == ["cuda", "cpu"] and all(suite.cases_on(device) for device in suite.devices)
    short = ("--where", "label_smoothing=0.1", "--only", "baseline", "--only", "mine")
    done = harness("run", "my_suite.yaml", "--out", "run", *short, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [(row.implementation, row.status) for row in records(tmp_path / "run")] == [
        ("baseline", "ok"),
        ("mine", "ok"),
    ]
