"""`python -m harness merge`: curves that were trained apart become one run, if they are of one training."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.training.curve_log import Outcome
from harness.training.training_run import TrainingPlan, TrainingRun
from tests.harness.training.conftest import MakeToy
from tests.harness.training.test_parity import PROVENANCE, write

LOSSES = [5.0, 4.0, 3.0, 2.0]


def trained(path: Path, toy: MakeToy, losses: list[str], ms: float = 10.0, **changes: object) -> TrainingRun:
    """A finished run of toy curves, a step of which takes `ms`; `corpus` is another text's digest."""
    digest = str(changes.pop("corpus", "abcdef0123456789"))
    training = {"label_smoothing": [0.0, 0.1], "steps": 4} | dict(changes.pop("training", {}))  # type: ignore[call-overload]
    config = toy(loss=losses, training=training, **changes)
    run, started = TrainingRun(path), f"2026-03-04T05:06:{len(losses):02d}Z"
    run.create(
        TrainingPlan(
            config=config, device="cuda", corpus_digest=digest, corpus_description="10 documents",
            provenance=PROVENANCE.model_copy(update={"started": started, "dirty": False}),
        )
    )  # fmt: skip
    for curve in config.curves():
        steps = config.training.steps
        write(run.log(curve), LOSSES[:steps], [1.0] * steps, [900.0, *[ms] * (steps - 1)])
        run.log(curve).conclude(Outcome(status="finished"))
        weights = run.log(curve).checkpoints / "step-000004" / "model.safetensors"
        weights.parent.mkdir(parents=True)
        weights.write_bytes(b"large")
    return run


def merge(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["merge", *map(str, arguments)])
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


def test_curves_of_two_runs_are_compared(toy: MakeToy, tmp_path: Path) -> None:
    one = trained(tmp_path / "one", toy, ["baseline", "torch-compile"])
    two = trained(tmp_path / "two", toy, ["ours-exact"], training={"label_smoothing": [0.1, 0.3]})
    code, stdout, stderr = merge(one.path, two.path, "--out", tmp_path / "both")
    assert code == 0, stderr
    plan = TrainingRun(tmp_path / "both").plan()
    assert [loss.name for loss in plan.config.loss] == ["baseline", "torch-compile", "ours-exact"]
    assert plan.config.training.label_smoothing == [0.0, 0.1, 0.3]
    assert "2026-03-04T05:06:01Z" in stdout and "2026-03-04T05:06:02Z" in stdout  # where each part comes from
    rows = [line for line in stdout.splitlines() if line.startswith("| ours-exact")]
    assert [row.split("|")[2].strip() for row in rows] == ["0.1", "0.3"]
    assert [row.split("|")[6].strip() for row in rows] == ["0.0e+00 @1, 0.0e+00", "—"]  # the other's baseline
    assert "`ours-exact`, β = 0: not begun" in stdout
    assert stdout == (tmp_path / "both" / "report.md").read_text()
    assert (tmp_path / "both" / "curves.png").exists()
    assert not list((tmp_path / "both").rglob("checkpoints"))


def test_a_curve_that_nobody_could_train_says_why(toy: MakeToy, tmp_path: Path) -> None:
    one = trained(tmp_path / "one", toy, ["cce"], training={"label_smoothing": [0.0]})
    two = trained(tmp_path / "two", toy, ["baseline"])
    code, stdout, stderr = merge(one.path, two.path, "--out", tmp_path / "both")
    assert code == 0, stderr
    (line,) = [line for line in stdout.splitlines() if line.startswith("- `cce`, β = 0.1")]
    assert "skipped" in line and "has no label smoothing" in line


def test_quiet_runs_that_measure_every_curve_replace_earlier_ones(toy: MakeToy, tmp_path: Path) -> None:
    shared = trained(tmp_path / "shared", toy, ["baseline", "liger"], ms=40.0)
    first = trained(tmp_path / "first", toy, ["liger"], ms=20.0)
    later = trained(tmp_path / "later", toy, ["baseline", "liger"], ms=10.0)
    assert merge(shared.path, "--quiet", first.path, "--out", tmp_path / "a")[0] == 0
    assert merge(tmp_path / "a", "--quiet", later.path, "--out", tmp_path / "b")[0] == 0
    assert len(TrainingRun(tmp_path / "a").plan().quiet) == len(TrainingRun(tmp_path / "b").plan().quiet) == 1
    assert merge(tmp_path / "b", "--quiet", first.path, "--out", tmp_path / "c")[0] == 0
    assert len(TrainingRun(tmp_path / "c").plan().quiet) == 2  # baseline's is still of the later one


def test_times_are_those_of_the_quiet_run(toy: MakeToy, tmp_path: Path) -> None:
    shared = trained(tmp_path / "shared", toy, ["baseline", "ours-exact"], ms=40.0)
    quiet = trained(tmp_path / "quiet", toy, ["ours-exact"], ms=10.0, training={"steps": 3})
    code, stdout, stderr = merge(shared.path, "--quiet", quiet.path, "--out", tmp_path / "both")
    assert code == 0, stderr
    table = {
        tuple(c.strip() for c in line.split("|")[1:3]): line.split("|") for line in stdout.splitlines() if "|" in line
    }
    # a time beside other trainings is none
    for loss, ms, steps in (("baseline", "—", "4"), ("ours-exact", "10.00", "4")):
        assert (table[loss, "0"][10].strip(), table[loss, "0"][3].strip()) == (ms, steps)
        assert table[loss, "0"][12].strip() != "—"
    assert "Times, of 2 curves, are of a run apart of at most 3 steps" in stdout
    assert "- time and memory: NVIDIA H200" in stdout
    # a merged run can be merged again
    third = trained(tmp_path / "third", toy, ["liger"])
    assert merge(tmp_path / "both", third.path, "--out", tmp_path / "all")[0] == 0
    assert "10.00" in (tmp_path / "all" / "report.md").read_text()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training": {"learning_rate": 2e-2}}, "training.learning_rate is 0.02 there, 0.01 here"),
        ({"training": {"steps": 3}}, "training.steps is 3 there, 4 here"),
        ({"model": {"softcap": 30.0}}, "model.softcap is 30.0 there, None here"),
        ({"corpus": "another"}, "corpus_digest is another there, abcdef0123456789 here"),
    ],
)
def test_other_trainings_are_refused(toy: MakeToy, tmp_path: Path, changes: dict[str, object], said: str) -> None:
    one, two = trained(tmp_path / "one", toy, ["baseline"]), trained(tmp_path / "two", toy, ["ours-exact"], **changes)
    code, _, stderr = merge(one.path, two.path, "--out", tmp_path / "both")
    assert code == 2
    assert f"two cannot be merged with {one.path}: {said}" in stderr
    assert not (tmp_path / "both").exists()


def test_what_else_is_refused(toy: MakeToy, tmp_path: Path) -> None:
    one, two = trained(tmp_path / "one", toy, ["baseline"]), trained(tmp_path / "two", toy, ["baseline"])
    other = trained(tmp_path / "other", toy, ["ours-exact"])
    for arguments, said in (
        ([one.path, two.path, "--out", tmp_path / "both"], "two runs trained the same curve to its end"),
        ([one.path, "--out", two.path], "holds a run already"),
        ([one.path, "--quiet", other.path, "--out", tmp_path / "both"], "other: none of its curves is merged"),
        ([one.path, tmp_path / "none", "--out", tmp_path / "both"], "holds no training run"),
    ):
        code, _, stderr = merge(*arguments)
        assert code == 2
        assert said in stderr
    # of two that did not finish, the longer one counts
    for run in (one, two):
        for curve in run.plan().config.curves():
            run.log(curve).reopen()
            run.log(curve).cut_back(3 if run is one else 2)
    assert merge(two.path, one.path, "--out", tmp_path / "both")[0] == 0
    both = TrainingRun(tmp_path / "both")
    assert {len(both.log(curve).steps()) for curve in both.plan().config.curves()} == {3}
