"""`import harness`, as another project uses it."""

from __future__ import annotations

import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import harness
from harness.running import runs

pytestmark = pytest.mark.takes_s(30)
ROOT = Path(__file__).parents[2]
PYTHON_FILE = re.compile(r"```python\n# (\w+\.py)\n(.*?)```", re.DOTALL)
SUITE = {
    "name": "tiny",
    "description": "nothing much",
    "device": "cpu",
    "grid": {"tokens": (4, 8), "hidden_size": 8, "vocab_size": 32, "dtype": "float32", "inputs": "gaussian"},
    "implementations": ["lower-bound", "baseline", {"name": "own", "path": "examples.own_implementation:chunked_loss"}],
    "measurement": {"phases": ["agreement"]},
}


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine as a worker on a CPU would describe it, without starting one."""
    monkeypatch.setattr(runs, "environment", lambda log: {"cuda_available": False, "cpu_cores": 2})


def changed(**changes: Any) -> dict[str, Any]:
    return {**SUITE, **changes}


def test_a_suite_given_as_a_mapping_is_measured_and_read_again(tmp_path: Path) -> None:
    run = harness.run_suite(SUITE, only=["baseline", "own"], where={"tokens": 8}, out=tmp_path / "run")
    assert [(record.implementation, record.case.tokens) for record in run.records] == [("baseline", 8), ("own", 8)]
    assert all(record.status is harness.Status.OK for record in run.records) and not run.unexpected and not run.left
    assert harness.load_records(run.path) == harness.load_records(f"{run.path}/records.jsonl") == list(run.records)
    frame = run.frame()
    assert list(frame.implementation) == ["baseline", "own"]
    assert (frame.grad_weight_excess < 4).all()
    assert "2 ok of 2" in run.report()
    assert run.records[0].provenance.argv[0] == Path(sys.argv[0]).name  # who asked: no command of the harness


def test_a_budget_leaves_cases_for_later(tmp_path: Path) -> None:
    run = harness.run_suite(SUITE, only="lower-bound", out=tmp_path / "run", budget_s=1e-9)
    assert [record.case.tokens for record in run.records] == [4]
    assert [case.tokens for case in run.left] == [8]


def test_what_fails_is_a_record(tmp_path: Path) -> None:
    rows = ["baseline", {"name": "wrong", "path": "tests.harness.planted:wrong"}]
    run = harness.run_suite(changed(implementations=rows), where={"tokens": 4}, out=tmp_path / "run")
    assert [(record.implementation, record.status) for record in run.unexpected] == [
        ("wrong", harness.Status.DISAGREES)
    ]


@pytest.mark.parametrize(
    ("suite", "arguments", "words"),
    [
        (
            changed(grid={"tokens": "4"}),
            {},
            ["suite: grid.tokens: ", "not '4'", "suite: missing key 'grid.vocab_size'"],
        ),
        (changed(refrence="x"), {}, ["suite: unknown key 'refrence', did you mean 'reference'?"]),
        (changed(reference="basline"), {}, ["suite: reference: 'basline' is not among", "'baseline'"]),
        (
            SUITE,
            {"only": "basline"},
            ["only basline: suite 'tiny' has no such implementation, did you mean 'baseline'?"],
        ),
        (SUITE, {"where": {"tokns": 4}}, ["where unknown key 'tokns', did you mean 'tokens'?"]),
        (SUITE, {"where": {"tokens": 5}}, ["where={'tokens': 5} leaves no case of suite 'tiny'"]),
        (SUITE, {"budget_s": -1}, ["budget_s must be more than 0 seconds, given -1"]),
        (SUITE, {"budget_s": float("nan")}, ["budget_s must be more than 0 seconds, given nan"]),
        (SUITE, {"device": "cuda"}, ["device cuda: suite 'tiny' is for cpu"]),
        ("suites/nothing.yaml", {}, ["suites/nothing.yaml: cannot be read"]),
    ],
)
def test_mistakes_are_value_errors_in_words(
    no_gpu: None, tmp_path: Path, suite: str | Mapping[str, Any], arguments: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ValueError) as caught:
        harness.run_suite(suite, out=tmp_path / "run", **arguments)
    for part in words:
        assert part in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rows", "given"), [("ours", "'ours'"), (["ours=baseline"], "'ours=baseline'"), ([("a",)], "('a',)")]
)
def test_rows_that_are_no_pairs_are_said_to_be_none(rows: Any, given: str) -> None:
    with pytest.raises(
        ValueError, match=re.escape(f"rows must be pairs of names, (base's, head's) each, given {given}")
    ):
        harness.compare(ROOT / "reports/models-h200", rows=rows)


def test_a_machine_that_cannot_measure_is_said_so(no_gpu: None, tmp_path: Path) -> None:
    with pytest.raises(harness.UnfitEnvironment, match="suite 'gemma2' needs a CUDA GPU"):
        harness.run_suite("suites/gemma2.yaml", out=tmp_path / "run")
    with pytest.raises(harness.UnfitEnvironment, match="suite 'quick' needs a CUDA GPU"):
        harness.run_suite("suites/quick.yaml", out=tmp_path / "run", device="cuda")


def test_a_run_is_not_overwritten(no_gpu: None, tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text("precious\n")
    with pytest.raises(ValueError, match="holds a run already"):
        harness.run_suite(SUITE, only="baseline", out=tmp_path)
    assert (tmp_path / "records.jsonl").read_text() == "precious\n"


def test_options_that_a_row_refuses_are_a_value_error(no_gpu: None, tmp_path: Path) -> None:
    row = {"name": "ours", "options": {"tolerance": 0.01}}
    with pytest.raises(ValueError, match="tolerance"):
        harness.run_suite(changed(implementations=["baseline", row]), out=tmp_path / "run")


def test_importing_costs_nothing_and_measuring_no_torch() -> None:
    heavy = {"torch", "pandas", "numpy", "matplotlib", "pydantic", "yaml"}
    program = f"""
import sys, harness
print(sorted({heavy} & set(sys.modules)))
names = [getattr(harness, name) for name in harness.__all__]
print(sorted({heavy} & set(sys.modules)))
"""
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert shown.splitlines() == ["[]", "['pydantic', 'yaml']"]


def test_public_names_are_documented_where_it_is_promised() -> None:
    documented = re.findall(r"^\| (`.*?) \|", (ROOT / "docs/library.md").read_text(), re.MULTILINE)
    assert {name for row in documented for name in re.findall(r"`(\w+)", row)} == set(harness.__all__)
    assert set(harness.__all__) <= set(dir(harness))
    assert all(getattr(harness, name).__doc__ for name in harness.__all__)
    with pytest.raises(AttributeError, match="no attribute 'run_suit'"):
        harness.run_suit  # noqa: B018


def test_no_public_name_is_a_modules() -> None:
    """`import harness.x` anywhere would put the module in the place of a function x, from then on."""
    assert set(harness.__all__).isdisjoint(module.name for module in pkgutil.iter_modules(harness.__path__))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Another project: the files of the documentation, nothing else."""
    for page in ("docs/library.md", "CONTRIBUTING.md"):
        for name, code in PYTHON_FILE.findall((ROOT / page).read_text()):
            (tmp_path / name).write_text(code)
    return tmp_path


def run_pytest_in(project: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # as if this tree were installed there
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_loss.py"]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


def test_the_example_of_the_documentation_passes(project: Path) -> None:
    done = run_pytest_in(project)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_and_fails_for_a_loss_whose_gradients_are_wrong(project: Path) -> None:
    own = project / "my_losses.py"
    code = own.read_text().replace(
        "    return F.cross_entropy", "    logits = 1.1 * logits - 0.1 * logits.detach()\n    return F.cross_entropy"
    )
    own.write_text(code)
    done = run_pytest_in(project)
    assert done.returncode == 1
    assert "grad_weight" in done.stdout and "disagrees" in done.stdout
