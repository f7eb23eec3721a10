"""What conditions, `--only` and `--where` select, and what is said about expressions that select nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness import selection
from harness.case import Case, Inputs
from harness.suite import Where
from harness.suite_file import load_suite
from harness.yaml_source import InvalidFile

CASE = Case(tokens=8, hidden_size=4, vocab_size=16)


@pytest.mark.parametrize(
    ("expression", "matches"),
    [
        ("inputs=zipf-medium", True),
        ("inputs=gaussian|zipf-medium", True),
        ("inputs=gaussian", False),
        ("softcap=none", True),
        ("softcap=30|null", True),
        ("label_smoothing=0", True),
        ("linear_bias=no", True),
        ("tokens=9", False),
    ],
)
def test_conditions(expression: str, matches: bool) -> None:
    assert selection.condition([expression]).matches(CASE) is matches


GAUSSIAN = [Inputs(kind="gaussian", std=std) for std in (None, 1.0, 2.0)]
FILES = [Inputs(kind="file", path=path) for path in ("a", "b")]


@pytest.mark.parametrize(
    ("condition", "matched"),
    [
        ("gaussian", GAUSSIAN),
        ({"kind": "gaussian"}, GAUSSIAN),
        ({"kind": "gaussian", "std": 2}, GAUSSIAN[2:]),
        ({"kind": "gaussian", "std": 1}, GAUSSIAN[:2]),  # a bare gaussian has that too
        (["uniform", {"kind": "gaussian", "std": 2}], GAUSSIAN[2:]),
        ("file", FILES),
        ({"kind": "file", "path": "a"}, FILES[:1]),
    ],
)
def test_a_bare_kind_of_inputs_matches_any_parameters(condition: Any, matched: list[Inputs]) -> None:
    where = Where.model_validate({"inputs": condition})
    assert [i for i in (*GAUSSIAN, *FILES) if where.matches(CASE.model_copy(update={"inputs": i}))] == matched


def test_parameters_of_inputs_on_the_command_line() -> None:
    case = CASE.model_copy(update={"inputs": GAUSSIAN[2]})
    assert selection.condition(["inputs=gaussian"]).matches(case)
    assert selection.condition(["inputs={kind: gaussian, std: 2}"]).matches(case)
    assert not selection.condition(["inputs={kind: gaussian, std: 3}"]).matches(case)


def test_a_null_condition_is_not_a_missing_one() -> None:
    capped = CASE.model_copy(update={"softcap": 30.0})
    assert [Where.model_validate({"softcap": None}).matches(case) for case in (CASE, capped)] == [True, False]
    assert [Where().matches(case) for case in (CASE, capped)] == [True, True]


@pytest.mark.parametrize(
    ("expressions", "words"),
    [
        (["tokns=4"], ["did you mean 'tokens'?"]),
        (["label_smoothing="], ["--where label_smoothing=: needs a value"]),
        (["tokens=4|"], ["needs a value on both sides of |"]),
        (["tokens=many"], ["tokens: should be a valid integer, not 'many'"]),
        (["label_smoothing=1e-1"], ["not '1e-1'; write 1.0e-1"]),
        (["inputs=zipf"], ["--where inputs: 'zipf' is none of 'gaussian', 'zipf-weak'", "did you mean 'zipf-weak'?"]),
        (["dtype=fp32"], ["--where dtype: 'fp32' is none of 'bfloat16', 'float16' or", "did you mean 'float32'?"]),
        (["inputs=["], ["is no YAML value"]),
        (["tokens=4", "tokens=8"], ["tokens is given twice; put | between"]),
    ],
)
def test_conditions_with_mistakes(expressions: list[str], words: list[str]) -> None:
    with pytest.raises(selection.InvalidSelection) as caught:
        selection.condition(expressions)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_key_without_a_value_is_not_its_own_suggestion() -> None:
    with pytest.raises(selection.InvalidSelection, match="must be KEY=VALUE") as caught:
        selection.condition(["label_smoothing"])
    assert "did you mean" not in str(caught.value)


def test_names_with_commas_are_several_names() -> None:
    suite = load_suite(Path("suites/quick.yaml"))
    with pytest.raises(selection.InvalidSelection, match="no such implementation; repeat --only for each"):
        selection.implementations(suite, ["baseline,liger"], [])
    assert selection.implementations(suite, ["liger", "baseline"], []) == ["baseline", "liger"]


def test_a_file_of_inputs_must_be_there_when_the_suite_is_run(tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(
        "name: captured\ndescription: d\n"
        "grid: {tokens: 4, hidden_size: 8, vocab_size: 32, inputs: {kind: file, path: nope}}\n"
        "implementations: [baseline]\n"
    )
    load_suite(path)  # another command may be about to write it
    with pytest.raises(InvalidFile, match=r"suite\.yaml:3: grid\.inputs\.path: no file nope \(seen from /"):
        load_suite(path, to_be_run=True)
