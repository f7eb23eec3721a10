"""Suite files: what is read from them, and what is said about their mistakes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from harness.case import Case, Inputs
from harness.record import Record, Status
from harness.suite import ExpectedStatus, Suite
from harness.suite_file import load_suite
from harness.yaml_source import InvalidFile

SUITES = sorted(Path("suites").glob("*.yaml"))

GOOD = """\
name: good
description: two cases
device: cpu
grid: {tokens: 8, hidden_size: 4, vocab_size: 16, label_smoothing: [0.0, 0.1]}
implementations: [baseline, liger]
"""


def grid(more: str) -> str:
    """The good suite with another key in its grid."""
    return GOOD.replace("vocab_size: 16", f"vocab_size: 16, {more}")


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "suite.yaml"
        path.write_text(text)
        return path

    return write


def mistakes(path: Path) -> list[str]:
    with pytest.raises(InvalidFile) as caught:
        load_suite(path)
    return [str(m).removeprefix(f"{path}:") for m in caught.value.mistakes]


@pytest.mark.parametrize("path", SUITES, ids=lambda p: p.stem)
def test_shipped_suites_are_valid(path: Path) -> None:
    suite = load_suite(path)
    assert suite.name == path.stem
    assert suite.cases_on("cuda")


def test_the_suites_that_the_project_promises_are_there() -> None:
    assert {p.stem for p in SUITES} >= {"quick", "gemma2", "models", "scaling", "numerics"}


def test_gemma2_is_the_papers_case_seven_times() -> None:
    cases = load_suite(Path("suites/gemma2.yaml")).cases_on("cuda")
    assert {(c.tokens, c.hidden_size, c.vocab_size, c.dtype) for c in cases} == {(8192, 2304, 256000, "bfloat16")}
    assert {(c.inputs.label, c.label_smoothing, c.softcap) for c in cases} == {
        ("zipf-medium", 0.0, None),
        ("zipf-medium", 0.1, None),
        ("zipf-medium", 0.0, 30.0),
        ("zipf-medium", 0.1, 30.0),
        ("zipf-weak", 0.1, None),
        ("zipf-strong", 0.1, None),
        ("gaussian", 0.1, None),
    }


def test_scaling_has_five_points_an_axis() -> None:
    cases = load_suite(Path("suites/scaling.yaml")).cases_on("cuda")
    for axis, others in (
        ("tokens", ("hidden_size", "vocab_size")),
        ("hidden_size", ("tokens", "vocab_size")),
        ("vocab_size", ("tokens", "hidden_size")),
    ):
        lines: dict[tuple[int, ...], set[int]] = {}
        for case in cases:
            if case.label_smoothing == 0.0:  # which every peer has
                lines.setdefault(tuple(getattr(case, o) for o in others), set()).add(getattr(case, axis))
        assert max(len(points) for points in lines.values()) >= 5, axis
    assert len({c.label_smoothing for c in cases}) >= 6


def test_numerics_covers_what_it_promises() -> None:
    suite = load_suite(Path("suites/numerics.yaml"))
    cases = suite.cases_on("cuda")
    assert suite.measurement.phases == ["agreement"]
    assert {c.label_smoothing for c in cases} >= {0.0, 0.1, 0.5, 1.0}
    assert {c.softcap for c in cases} >= {None, 30.0, 2.0}
    assert {c.dtype for c in cases} == {"float32", "bfloat16", "float16"}
    assert {0.0, 1.0} < {c.ignored_fraction for c in cases}
    assert {c.inputs.kind for c in cases} >= {"gaussian", "zipf-medium", "confident", "uniform", "smoothed"}


@pytest.mark.parametrize("path", SUITES, ids=lambda p: p.stem)
def test_no_shipped_expectation_swallows_a_crash(path: Path) -> None:
    for expected in load_suite(path).expectations:
        assert set(expected.status) <= {"ok", "disagrees"}


def test_grid_is_a_product_and_defaults_hold(write) -> None:
    suite = load_suite(write(GOOD))
    assert [c.label_smoothing for c in suite.cases_on("cpu")] == [0.0, 0.1]
    assert suite.reference == "baseline"
    assert suite.max_excess == 4


def test_every_mistake_at_once_with_its_line(write) -> None:
    found = mistakes(
        write(
            "name: Bad Name\n"
            "descripton: typo\n"
            "device: gpu\n"
            "grid:\n"
            "  tokens: [8192, -1]\n"
            "  hiden_size: 5\n"
            "  vocab_size: many\n"
            "  inputs: [gausian]\n"
            "implementations:\n"
            "  - baseline\n"
            "  - ligr\n"
            "  - baseline\n"
            "measurement: {minimum_rounds: 3, phases: [time], target_interval: 2}\n"
            "expectations:\n"
            "  - {implementation: cse, status: disagree, reason: why}\n"
        )
    )
    for line, *words in (
        (1, "name", "'Bad Name'"),
        (1, "missing key 'description'"),
        (2, "unknown key 'descripton'", "did you mean 'description'?", "allowed: name, description"),
        (3, "device: 'gpu' is none of 'cuda', 'cpu' or 'auto'"),
        (5, "grid.tokens.1", "greater than 0", "-1"),
        (6, "unknown key 'grid.hiden_size'", "did you mean 'hidden_size'?"),
        (7, "grid.vocab_size", "integer", "'many'"),
        (8, "grid.inputs", "'gausian'", "did you mean 'gaussian'?"),
        (11, "no implementation is called 'ligr'", "did you mean 'liger'?", "pkg.mod:obj"),
        (12, "'baseline' is listed twice"),
        (13, "measurement.target_interval: should be less than 1, not 2"),
        (13, "measurement.phases: must include agreement"),
        (15, "'disagree' is none of", "did you mean 'disagrees'?"),
        (15, "'cse' is not among the implementations"),
    ):
        assert any(f.startswith(f"{line}: ") and all(w in f for w in words) for f in found), (line, words, found)


def test_each_mistake_is_said_once(write) -> None:
    found = mistakes(write(GOOD.replace("[0.0, 0.1]", "[0.0, 2]")))
    assert len(found) == 1
    assert found[0].startswith("4: grid.label_smoothing.1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD + "name: again\n", "6: duplicate key 'name', first given in line 1"),
        (GOOD.replace("tokens: 8,", "tokens: 8, tokens: 9,"), "4: duplicate key 'tokens', first given in line 4"),
        ("- a\n- b\n", "1: is no mapping"),
        ("", "1: is no mapping"),
        ("name: [\n", "2: is not YAML"),
        (GOOD + "reference: cce\n", "6: reference: 'cce' is not among the implementations"),
        (GOOD.replace("device: cpu", "device: auto") + "on_cpu: {cases: []}\n", "6: on_cpu: no case is left"),
        (GOOD + "exclude: [{tokens: 8}]\n", "4: grid: no case is left"),
        (GOOD + "on_cpu: {cases: []}\n", "6: on_cpu: has no effect with device: cpu"),
        (GOOD + "measurement: {phases: [time]}\n", "6: measurement.phases: must include agreement"),
        (GOOD + "measurement: {minimum_rounds: 3}\n", "6: measurement: minimum_rounds * samples_per_turn must be at"),
        (GOOD.replace("liger", "{name: liger, path: 'a.b:c'}"), "5: implementations.1.path: 'liger' is the registry's"),
        (
            GOOD.replace("liger", "{name: lower-bound, options: {x: 1}}"),
            "5: implementations.1.options: lower-bound runs",
        ),
        (GOOD.replace("liger", "{name: mine, path: nonsense}"), "5: implementations.1.path: 'nonsense'"),
        (GOOD.replace("vocab_size: 16", "vocab_size: 16, inputs: {kind: uniform, std: 2}"), "4: grid.inputs"),
        (grid("inputs: file"), "4: grid.inputs: inputs of kind file need a path"),
        (grid("inputs: {std: 2}"), "4: missing key 'grid.inputs.kind'"),
        (grid("softcap: 0"), "4: grid.softcap"),
        # wrong types and values
        (grid("softcap: .inf"), "4: grid.softcap: should be a finite number, not inf"),
        (grid("inputs: {kind: gaussian, std: .nan}"), "4: grid.inputs.std: should be"),
        (grid("linear_bias: 1"), "4: grid.linear_bias: should be true or false, not 1"),
        (GOOD + "limits: {timeout_s: .inf}\n", "6: limits.timeout_s: should be a finite number"),
        (GOOD + "max_excess: .inf\n", "6: max_excess: should be a finite number"),
        (GOOD + "measurement: {case_budget_s: .nan}\n", "6: measurement.case_budget_s: should be"),
        (GOOD + "exclude: [{softcap: .nan}]\n", "6: exclude.0.softcap: should be a finite number"),
        (
            GOOD + "cases: [{tokens: 8, hidden_size: 4, vocab_size: 16, softcap: .inf}]\n",
            "6: cases.0.softcap: should be a f",
        ),
        (
            GOOD.replace("liger", "{name: liger, options: {x: .nan}}"),
            "5: implementations.1.options.x: should be a finite",
        ),
        (GOOD + "seed: yes\n", "6: seed: should be a valid integer, not the boolean true"),
        (GOOD + "max_excess: 1e1\n", "6: max_excess: should be a valid number, not '1e1'; write 1.0e+1"),
        (
            GOOD + "limits: {timeout_s: 1e-2}\n",
            "6: limits.timeout_s: should be a valid number, not '1e-2'; write 1.0e-2",
        ),
        (GOOD.replace("tokens: 8", 'tokens: "64"'), "4: grid.tokens: should be a valid integer, not '64'; write 64"),
        (GOOD.replace("tokens: 8", "tokens: true"), "4: grid.tokens: should be a valid integer, not the boolean true"),
        (
            GOOD.replace("hidden_size: 4", "hidden_size: 32.0"),
            "4: grid.hidden_size: should be a valid integer, not 32.0",
        ),
        (GOOD.replace("[0.0, 0.1]", "true"), "4: grid.label_smoothing: should be a valid number, not the boolean true"),
        (GOOD.replace("[0.0, 0.1]", "[]"), "4: grid.label_smoothing: is empty"),
        (GOOD.replace("two cases", "''"), "2: description: is empty"),
        (GOOD + "measurement: {phases: []}\n", "6: measurement.phases: is empty"),
        (GOOD + "measurement: 5\n", "6: measurement: should be a mapping of keys to values, not 5"),
        (GOOD + "exclude: {tokens: 8}\n", "6: exclude: should be a list, not {'tokens': 8}"),
        (GOOD.replace("name: good", "name: Good"), "1: name: 'Good' should be lower case letters, digits and dashes"),
        (GOOD.replace("liger", "{name: mine, path: a.b}"), "5: implementations.1.path: 'a.b' should be pkg.mod:obj"),
        (
            GOOD.replace("[baseline, liger]", "\n  -baseline"),
            "5: implementations: should be a list, not '-baseline'; write `- x`",
        ),
        # keys of another level
        (GOOD + "hidden_size: 5\n", "6: unknown key 'hidden_size', it belongs under grid (allowed: name"),
        (GOOD + "implementation: cce\n", "6: unknown key 'implementation', did you mean 'implementations'? (allowed"),
        (GOOD + "limits: {case_budget_s: 5}\n", "6: unknown key 'limits.case_budget_s', it belongs under measurement"),
        (grid("max_excess: 5"), "4: unknown key 'grid.max_excess', it belongs at the top level"),
        (grid("std: 5"), "4: unknown key 'grid.std', it belongs under grid.inputs"),
        # conditions that match nothing
        (GOOD + "exclude:\n  - {label_smoothing: 0.1}\n  - {tokens: 9}\n", "8: exclude.1: matches no case"),
        (
            GOOD + "expectations: [{implementation: liger, where: {dtype: float32}, status: any, reason: r}]\n",
            "6: expectations.0.where: matches no case",
        ),
        # not YAML
        (
            GOOD + "limits:\n\ttimeout_s: 5\n",
            "7: is not YAML: found character '\\t' that cannot start any token; indent with",
        ),
        (GOOD.replace("two cases", "two: cases"), "2: is not YAML: mapping values are not allowed here; quote a value"),
        (
            GOOD + "exclude:\n  -{tokens: 8}\n",
            "6: exclude: should be a list, not {'-{tokens': '8}'}; write `- x`, with",
        ),
        (
            GOOD.replace("[baseline, liger]", "\n  - baseline\n  -liger"),
            "7: is not YAML: could not find expected ':'; write",
        ),
        (GOOD + "exclude:\n  - {tokens: 8}\n  -{tokens: 9}\n", "8: is not YAML: expected <block end>, but found"),
    ],
)
def test_one_mistake_one_message(write, text: str, expected: str) -> None:
    found = mistakes(write(text))
    assert len(found) == 1, found
    assert found[0].startswith(expected)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("none.yaml", "none.yaml: cannot be read: No such file or directory"),
        ("quick", "quick: cannot be read: No such file or directory, did you mean suites/quick.yaml?"),
        ("suites", "suites: is a directory"),
    ],
)
def test_an_unreadable_file_has_no_line(path: str, expected: str) -> None:
    with pytest.raises(InvalidFile) as caught:
        load_suite(Path(path))
    assert str(caught.value) == expected


def test_a_file_of_inputs_is_looked_up_from_the_current_directory(
    write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(grid("inputs: {kind: file, path: captured.safetensors}"))
    (tmp_path / "captured.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    assert len(load_suite(path).cases_on("cpu")) == 2


def test_whole_numbers_will_do_for_fractions(write) -> None:
    suite = load_suite(write(GOOD.replace("[0.0, 0.1]", "0") + "max_excess: 5\n"))
    assert (suite.max_excess, suite.cases_on("cpu")[0].label_smoothing) == (5.0, 0.0)


def test_conditions_may_be_for_one_device_alone(write) -> None:
    text = GOOD.replace("device: cpu", "device: auto") + (
        "on_cpu: {grid: {tokens: 3, hidden_size: 4, vocab_size: 5}}\n"
        "exclude: [{tokens: 8, label_smoothing: 0.1}]\n"
        "expectations: [{implementation: liger, where: {tokens: 3}, status: any, reason: r}]\n"
    )
    suite = load_suite(write(text))
    assert [case.tokens for device in suite.devices for case in suite.cases_on(device)] == [8, 3]


def test_stored_records_can_still_be_read() -> None:
    for line in Path("reports/gemma2-h200/records.jsonl").read_bytes().splitlines():
        Record.model_validate_json(line)  # which compares the case's id too


@pytest.mark.parametrize("path", SUITES, ids=lambda p: p.stem)
def test_suites_survive_a_plan(path: Path) -> None:
    suite = load_suite(path)
    assert Suite.model_validate_json(suite.model_dump_json(exclude_unset=True)) == suite


def test_validation_and_reading_do_not_import_torch(write) -> None:
    code = (
        "import sys; from harness.cli import app; from typer.testing import CliRunner\n"
        f"result = CliRunner().invoke(app, ['validate', {str(write(GOOD))!r}])\n"
        "assert result.exit_code == 0, result.output\n"
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_expectation_is_found_by_implementation_and_case(write) -> None:
    suite = load_suite(
        write(GOOD + "expectations: [{implementation: liger, where: {label_smoothing: 0.1}, status: any, reason: r}]\n")
    )
    plain, smoothed = suite.cases_on("cpu")
    assert suite.expectation("liger", plain) is None
    assert suite.expectation("baseline", smoothed) is None
    found = suite.expectation("liger", smoothed)
    assert found is not None
    assert found.status == list(Status)


def test_expected_statuses_are_the_statuses() -> None:
    assert set(get_args(ExpectedStatus)) == {"any", *Status}


def test_case_ids_are_stable_and_tell_cases_apart() -> None:
    case = Case(tokens=8192, hidden_size=2304, vocab_size=256000)
    assert case.id == "n8192-d2304-v256000-bf16-b0-zipf-medium-a71734"  # a change would orphan every stored record
    others = [
        {"softcap": 30.0},
        {"label_smoothing": 0.1},
        {"inputs": Inputs(kind="gaussian")},
        {"inputs": Inputs(kind="gaussian", std=2.0)},
        {"inputs": Inputs(kind="file", path="a/x.safetensors")},
        {"inputs": Inputs(kind="file", path="b/x.safetensors")},
        {"seed": 1},
        {"linear_bias": True},
        {"label_smoothing": 0.1000001},
    ]
    ids = {case.id, *(case.model_copy(update=o).id for o in others)}
    assert len(ids) == len(others) + 1
