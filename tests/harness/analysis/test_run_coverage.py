"""Reports of runs that did not measure the whole suite: killed, out of budget, or told to leave something out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.analysis.report import render, write_report
from harness.cli import app
from harness.record import Record
from harness.running.run_directory import Plan, RunDirectory
from harness.suite import Suite, Where

MakeRecord = Callable[..., Record]
SHAPE = {"tokens": 64, "hidden_size": 8, "vocab_size": 128}
SUITE = Suite.model_validate(
    {
        "name": "tiny",
        "description": "three cases",
        "grid": {**SHAPE, "label_smoothing": [0.2, 0.1, 0.0], "inputs": ["zipf-weak"]},
        "implementations": ["baseline", "liger", "cce"],
    }
)


@pytest.fixture
def run(tmp_path: Path, make_record: MakeRecord) -> Callable[..., Path]:
    """A run directory of SUITE with records of the first `cases` cases."""

    def create(cases: int, implementations: tuple[str, ...] = ("baseline", "liger", "cce"), **where: object) -> Path:
        plan = Plan(
            suite=SUITE,
            device="cuda",
            device_name="NVIDIA H200",
            implementations=list(implementations),
            where=Where.model_validate(where),
        )
        directory = RunDirectory(tmp_path / "run")
        directory.create(plan)
        for case in plan.cases()[:cases]:
            directory.append(make_record(name, **_fields(case.model_dump())) for name in implementations)
        return directory.path

    return create


def _fields(case: dict[str, object]) -> dict[str, object]:
    return {name: case[name] for name in (*SHAPE, "label_smoothing", "inputs")}


def test_a_complete_run_says_nothing(run: Callable[..., Path]) -> None:
    report = render(run(3), "markdown")
    assert "- 3 cases: 9 ok of 9\n" in report
    for words in ("measured**", "--resume", "left out"):
        assert words not in report


def test_missing_cases_are_counted(run: Callable[..., Path]) -> None:
    path = run(2)
    says = f"- **2 of 3 planned cases measured**; continue with: `python -m harness run --resume {path}`\n"
    assert says in render(path, "markdown")
    assert says in write_report(path).read_text()
    assert "planned" not in render(path / "records.jsonl", "markdown")


def test_a_half_written_case_is_not_measured(run: Callable[..., Path], make_record: MakeRecord) -> None:
    path = run(1)
    RunDirectory(path).append([make_record(**SHAPE, label_smoothing=0.1, inputs="zipf-weak")])
    report = render(path, "markdown")
    assert "**1 of 3 planned cases measured**" in report
    assert "incomplete: 2 rows not measured yet" in report


def test_what_the_options_left_out_is_named(run: Callable[..., Path]) -> None:
    path = run(0, ("baseline",), label_smoothing=0.1, softcap=[None, 30.0], inputs="zipf-weak")
    (path / "records.jsonl").touch()
    where = "--where label_smoothing=0.1 --where softcap=none|30.0 --where inputs=zipf-weak"
    assert render(path, "markdown").splitlines() == [
        "No records yet.",
        "",
        f"- **0 of 1 planned case measured**; continue with: `python -m harness run --resume {path}`",
        "- left out: liger, cce (--only/--skip)",
        f"- left out: all but 1 of the suite's 3 cases (`{where}`)",
    ]


def test_the_condition_keeps_what_else_an_input_says(run: Callable[..., Path]) -> None:
    path = run(0, inputs=["zipf-weak", {"kind": "gaussian", "std": 2.0}])
    (path / "records.jsonl").touch()
    assert '`--where inputs=zipf-weak|{"kind": "gaussian", "std": 2.0}`' in render(path, "markdown")


@pytest.mark.parametrize("format", ["markdown", "csv", "json"])
def test_a_run_killed_in_its_first_case_is_told_from_no_run(format: str, run: Callable[..., Path]) -> None:
    path = run(0)
    result = CliRunner().invoke(app, ["report", str(path), "--format", format])
    assert result.exit_code == 2
    said = "".join(result.stderr.split())  # the console may break lines
    assert "nocaseisfinishedyet;continuewith:python-mharnessrun--resume" + str(path) in said
    assert "norundirectory" not in said


def test_a_plan_of_another_version_does_not_hide_the_records(run: Callable[..., Path]) -> None:
    path = run(1)
    (path / "plan.json").write_text('{"format": 9}')
    assert "- **plan.json was written by another version of the harness: cases may be missing**" in render(
        path, "markdown"
    )
