"""A run of one kind given to a command of the other: it says what the directory is, and which command reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.running.run_directory import Plan, RunDirectory
from harness.running.run_kind import kind_of
from harness.suite_file import load_suite
from harness.training.training_run import TrainingPlan, TrainingRun
from tests.harness.training.conftest import MakeToy
from tests.harness.training.test_parity import PROVENANCE


@pytest.fixture
def runs(tmp_path: Path, toy: MakeToy) -> dict[str, Path]:
    """A run of each kind, before anything was measured or trained."""
    suite = load_suite(Path("suites/quick.yaml"))
    RunDirectory(tmp_path / "suite").create(
        Plan(suite=suite, device="cpu", device_name="a CPU", implementations=["baseline"])
    )
    config, digest = toy(), "abcdef0123456789"
    (tmp_path / "training").mkdir()
    TrainingRun(tmp_path / "training").create(
        TrainingPlan(
            config=config, device="cpu", corpus_digest=digest, corpus_description="text", provenance=PROVENANCE
        )
    )
    return {"suite": tmp_path / "suite", "training": tmp_path / "training"}


@pytest.mark.parametrize(
    ("command", "given"),
    [
        (("report",), "training"),
        (("compare",), "training"),
        (("run", "--resume"), "training"),
        (("train", "--resume"), "suite"),
        (("calibrate",), "suite"),
        (("merge", "--out", "nowhere"), "suite"),
    ],
)
def test_the_other_kind_is_named(runs: dict[str, Path], command: tuple[str, ...], given: str) -> None:
    done = CliRunner().invoke(app, [*command, str(runs[given])])
    assert (done.exit_code, done.stdout) == (2, "")
    path, said = runs[given], " ".join(done.stderr.split())
    if given == "training":
        expected = f"error: {path} holds a training run, whose report is {path}/report.md; "
        command_that_goes_on = f"python -m harness train --resume {path}"
    else:
        expected = f"error: {path} holds the run of a suite, not a training, and is read by: python -m harness report "
        command_that_goes_on = f"python -m harness run --resume {path}"
    assert said.startswith(expected), said
    assert said.endswith(command_that_goes_on)


def test_what_has_the_right_kind_is_read_or_damaged(runs: dict[str, Path], tmp_path: Path) -> None:
    assert {name: kind_of(path) for name, path in runs.items()} == {"suite": "suite", "training": "training"}
    done = CliRunner().invoke(app, ["report", str(runs["suite"])])
    assert "no case is finished yet; continue with: python -m harness run --resume" in done.stderr
    for content in ("{}", "[]", "not JSON", '{"suite": 1, "config": 2}'):
        (tmp_path / "plan.json").write_text(content)
        assert kind_of(tmp_path) is None, content
    assert kind_of(tmp_path / "plan.json") is None
    (runs["training"] / "plan.json").write_text('{"config": {}}')
    done = CliRunner().invoke(app, ["train", "--resume", str(runs["training"])])
    assert "damaged or of another version" in " ".join(done.stderr.split())
