"""From text to a trained model to a captured file to a suite's row: the whole way, at toy size, as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

from harness.training.curve_log import CurveLog, Outcome
from tests.harness.training.conftest import toy_settings, write_text

pytestmark = pytest.mark.takes_s(20)


def harness(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("trained")
    write_text(directory / "text")
    settings = toy_settings(directory, model={"softcap": 5.0}, training={"keep_steps": [2], "label_smoothing": 0.1})
    (directory / "toy.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    done = harness("train", directory / "toy.yaml", "--out", directory / "run", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    return directory / "run/curves/baseline-b0.1"


def test_from_a_checkpoint_to_a_measured_row(trained: Path, tmp_path: Path) -> None:
    files = []
    for name, checkpoint in (("late", trained), ("early", trained / "checkpoints/kept-000002")):
        path = tmp_path / f"{name}.safetensors"
        done = harness("capture", checkpoint, "--out", path, "--tokens", 64, "--dtype", "float32", "--device", "cpu")
        assert done.returncode == 0, done.stderr
        files.append((path, done.stdout))
    (late, printed), (early, _) = files
    with safe_open(str(late), framework="pt") as file, safe_open(str(early), framework="pt") as other:
        metadata, earlier = file.metadata(), other.metadata()
    assert (metadata["step"], earlier["step"]) == ("6", "2")
    assert (metadata["loss"], metadata["label_smoothing"]) == ("baseline", "0.1")
    assert metadata["softcap"] == "5.0"
    assert metadata["corpus_sha256"] == earlier["corpus_sha256"] and metadata["checksum"] != earlier["checksum"]
    assert json.loads(metadata["statistics"])["counted_rows"] == 64

    case = next(line.strip() for line in printed.splitlines() if line.strip().startswith("- {"))
    suite = tmp_path / "captured.yaml"
    suite.write_text(
        f"name: captured\ndescription: toy\ndevice: auto\ncases:\n  {case}\nimplementations: [baseline, ours-exact]\n"
        "measurement: {phases: [agreement]}\n"
    )
    done = harness("run", suite, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stdout + done.stderr
    shown = harness("inspect", late, early, "--tile", 64, "--order", "tokenizer", "--device", "cpu")
    assert shown.returncode == 0 and shown.stdout.count("| tokenizer") == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--text", "README.md"], "runs on its own held-out text, not --text"),
        (["--tokens", "999999"], "999999 were asked for"),
    ],
)
def test_what_a_checkpoint_cannot_give(trained: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    done = harness("capture", trained, "--out", tmp_path / "x", "--device", "cpu", *arguments)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())


def test_of_a_whole_run_a_curve_is_to_be_chosen(trained: Path, tmp_path: Path) -> None:
    run = trained.parents[1]
    done = harness("capture", run, "--out", tmp_path / "x", "--device", "cpu")
    assert done.returncode == 2
    said = " ".join(done.stderr.split())
    assert f"{run} holds a whole training run: give a curve of it, {run}/curves/NAME; one of baseline-b0.1" in said


def test_a_curve_without_a_checkpoint_says_how_it_ended(tmp_path: Path) -> None:
    curve = tmp_path / "cce-b0.1"
    CurveLog(curve).conclude(Outcome(status="skipped", reason="needs an NVIDIA GPU"))
    done = harness("capture", curve, "--out", tmp_path / "x", "--device", "cpu")
    assert done.returncode == 2
    said = " ".join(done.stderr.split())
    assert f"{curve} is a curve of a training without a checkpoint (skipped: needs an NVIDIA GPU)" in said


def test_a_name_that_is_no_model(tmp_path: Path) -> None:
    done = harness("capture", tmp_path, "--out", tmp_path / "x", "--text", "README.md", "--device", "cpu")
    assert done.returncode == 2
    assert "cannot be loaded by transformers" in " ".join(done.stderr.split())
