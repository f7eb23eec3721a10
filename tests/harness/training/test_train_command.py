"""`python -m harness train`: exit codes, what is skipped, and a run that is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.training.curve_log import CurveLog, Outcome

ToyFile = Callable[..., Path]


def train(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["train", *map(str, arguments)])
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


def outcome(run: Path, curve: str) -> Outcome | None:
    return CurveLog(run / "curves" / curve).outcome()


def test_a_run_trains_and_skips_and_reports(toy_file: ToyFile, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = toy_file(loss=["baseline", "cce", "liger"], training={"label_smoothing": [0.0, 0.1]})
    code, stdout, stderr = train(config, "--out", out, "--device", "cpu")
    assert code == 0, stderr
    assert stdout == (out / "report.md").read_text()
    assert outcome(out, "baseline-b0") == outcome(out, "baseline-b0.1") == Outcome(status="finished")
    for curve, reason in (
        ("cce-b0.1", "unsupported: CCE's kernels call libdevice"),
        ("liger-b0", "unsupported: on a CPU it runs in Triton's interpreter, too slow to train with"),
    ):
        recorded = outcome(out, curve)
        assert recorded is not None
        assert recorded.status == "skipped"
        assert str(recorded.reason).startswith(reason)
        assert f"{curve}: skipped: {reason}" in stderr
        assert reason in stdout
    assert (out / "curves.png").exists()
    assert stderr.endswith(f"the model of a finished curve, for `harness capture`: {out}/curves/LOSS-bBETA")
    kept = out / "curves/baseline-b0/checkpoints/step-000006"
    assert sorted(p.name for p in kept.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    # a finished run is reported once more, and trained no more
    before = (out / "curves/baseline-b0/steps.jsonl").read_bytes()
    code, stdout, _ = train("--resume", out)
    assert (code, stdout) == (0, (out / "report.md").read_text())
    assert (out / "curves/baseline-b0/steps.jsonl").read_bytes() == before


def test_one_loss_fails_and_the_others_go_on(toy_file: ToyFile, tmp_path: Path) -> None:
    planted = [{"name": name, "path": f"tests.harness.planted:{name}"} for name in ("raises", "missing_library")]
    config = toy_file(loss=[*planted, "baseline"])
    code, stdout, stderr = train(config, "--out", tmp_path / "run", "--device", "cpu")
    assert code == 4
    assert "failed: raises-b0; try them again with: python -m harness train --resume" in stderr
    failed, missing = outcome(tmp_path / "run", "raises-b0"), outcome(tmp_path / "run", "missing_library-b0")
    assert failed is not None
    assert failed.status == "failed"
    assert missing is not None
    assert "pip install 'a-library-nobody-has==1.0'" in str(missing.reason)
    assert outcome(tmp_path / "run", "baseline-b0") == Outcome(status="finished")
    assert str(failed.reason) in stdout


def test_only_losses_that_cannot_train(toy_file: ToyFile, tmp_path: Path) -> None:
    code, _, stderr = train(toy_file(), "--loss", "cce", "--device", "cpu", "--out", tmp_path / "run")
    assert code == 5
    assert "no loss of the configuration can train here (cce-b0: unsupported: CCE's kernels" in stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "arguments", "words"),
    [
        ({"model": {"hiden": 1}}, [], "toy.yaml:7: unknown key 'model.hiden'"),
        ({}, ["--loss", "our-exact"], "--loss our-exact: no implementation has this name, did you mean 'ours-exact'?"),
        ({"model": {"vocab_size": 50000}}, [], "fewer than model.vocab_size 50000"),
        ({"model": {"context": 100000}}, [], "fewer than model.context + 1 = 100001"),
        ({"data": {"text": "examples/training.yaml"}}, [], "the corpus has 1 document"),
        ({"data": {"cache": "README.md"}}, [], "data.cache README.md is no directory"),
        ({"loss": {"name": "mine", "path": "tests.harness.nowhere:x"}}, [], "loss 'mine': No module named"),
        ({"loss": {"name": "torchtune-chunked", "options": {"chnks": 1}}}, [], "(it takes: chunks)"),
    ],
)
def test_mistakes_are_one_error_and_exit_2(
    toy_file: ToyFile, tmp_path: Path, changes: dict[str, object], arguments: list[str], words: str
) -> None:
    code, stdout, stderr = train(toy_file(**changes), "--out", tmp_path / "run", "--device", "cpu", *arguments)
    assert words in stderr
    assert (code, stdout) == (2, "")
    assert not (tmp_path / "run" / "plan.json").exists()


def test_a_parquet_file_without_the_column(toy_file: ToyFile, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"id": [1], "body": ["text"]}), path)
    code, _, stderr = train(toy_file(data={"text": None, "dataset": str(path)}), "--out", tmp_path / "run")
    assert code == 2
    assert "has no column 'text'" in stderr
    assert "is one of: id, body" in stderr


def test_usage(toy_file: ToyFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "plan.json").write_text("{}")
    (tmp_path / "file").write_text("")
    for arguments, wanted, words in (
        ((), 2, "name a training file, such as examples/training-tiny.yaml"),
        (("--resume", tmp_path), 2, "holds no training run: plan.json is missing"),
        (("--resume", tmp_path / "old"), 2, "plan.json is no training's, damaged or of another version"),
        (("--resume", tmp_path, "--loss", "cce"), 2, "do not go with it"),
        ((toy_file(), "--out", tmp_path / "old", "--device", "cpu"), 2, "holds a run already; continue it with"),
        ((toy_file(), "--out", tmp_path / "file", "--device", "cpu"), 2, "cannot be created: File exists"),
        ((tmp_path / "none.yaml",), 2, "cannot be read: No such file or directory"),
    ):
        code, _, stderr = train(*arguments)
        assert words in stderr
        assert code == wanted
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, stderr = train(toy_file(), "--device", "cuda")
    assert (code, stderr) == (5, "error: --device cuda needs a CUDA GPU and torch sees none here")


def test_a_text_that_is_gone(toy_file: ToyFile, tmp_path: Path) -> None:
    config = toy_file(loss="baseline")
    assert train(config, "--out", tmp_path / "run", "--device", "cpu")[0] == 0
    for file in (tmp_path / "cache").iterdir():
        file.unlink()
    assert train("--resume", tmp_path / "run")[0] == 0  # made once more
    for file in (tmp_path / "cache").iterdir():
        file.unlink()
    (tmp_path / "text" / "0.txt").write_text("something else")
    code, _, stderr = train("--resume", tmp_path / "run")
    assert code == 2
    assert "was begun on another text" in stderr


def test_an_interrupt_says_how_to_go_on(toy_file: ToyFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.training import execution

    monkeypatch.setattr(execution, "train_curve", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    code, _, stderr = train(toy_file(), "--out", tmp_path / "run", "--device", "cpu")
    assert code == 130
    assert f"error: interrupted; continue with: python -m harness train --resume {tmp_path / 'run'}" in stderr


def test_a_killed_run_goes_on_to_the_same_bits(toy_file: ToyFile, tmp_path: Path) -> None:
    config = toy_file(
        loss=["baseline", "ours-exact"], training={"steps": 150, "checkpoint_every": 20, "evaluate_every": 50}
    )
    command = [sys.executable, "-m", "harness", "train"]
    fresh = [*command, str(config), "--device", "cpu", "--out"]
    subprocess.run([*fresh, str(tmp_path / "whole")], check=True, capture_output=True)
    parts = tmp_path / "parts"
    lines = parts / "curves" / "ours-exact-b0" / "steps.jsonl"
    process = subprocess.Popen([*fresh, str(parts)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not lines.exists() or lines.read_bytes().count(b"\n") < 45:
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert outcome(parts, "ours-exact-b0") is None
    killed_at = len(CurveLog(lines.parent).steps())
    subprocess.run([*command, "--resume", str(parts)], check=True, capture_output=True)
    for curve in ("baseline-b0", "ours-exact-b0"):
        whole, resumed = CurveLog(tmp_path / "whole" / "curves" / curve), CurveLog(parts / "curves" / curve)
        assert [(s.step, s.loss, s.grad_norm, s.learning_rate) for s in resumed.steps()] == [
            (s.step, s.loss, s.grad_norm, s.learning_rate) for s in whole.steps()
        ]
        assert resumed.evaluations() == whole.evaluations()
        weights = [p.read_bytes() for p in final_weights(whole, resumed)]
        assert weights[0] == weights[1]
    cold = [s.step for s in CurveLog(lines.parent).steps() if not s.warm]
    assert len(cold) == 20  # ten of each process
    assert cold[10] == killed_at // 20 * 20 + 1


def final_weights(*logs: CurveLog) -> list[Path]:
    """The weights that each curve ended with."""
    return [log.checkpoints / "step-000150" / "model.safetensors" for log in logs]
