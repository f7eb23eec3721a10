"""From trained models to a calibration report, at toy size, as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.harness.training.conftest import toy_settings, write_text

pytestmark = pytest.mark.takes_s(55)


def harness(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of two curves each: without a softcap and with one; cce cannot train here and is left out."""
    runs = []
    directory = tmp_path_factory.mktemp("trained")
    write_text(directory / "text", files=20)
    for name, softcap in (("plain", None), ("capped", 5.0)):
        settings = toy_settings(
            directory,
            model={"softcap": softcap},
            training={"label_smoothing": [0.0, 0.5], "steps": 60, "learning_rate": 2e-2},
            loss=["baseline", "cce"],
        )
        (directory / f"{name}.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
        done = harness("train", directory / f"{name}.yaml", "--out", directory / name, "--device", "cpu")
        assert done.returncode == 0, done.stderr
        runs.append(directory / name)
    return runs


OPTIONS = ("--tokens", 320, "--classwise", "--device", "cpu")


@pytest.fixture(scope="module")
def judged(trained: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The report of both runs together, and what was printed."""
    out = tmp_path_factory.mktemp("judged")
    done = harness("calibrate", *trained, "--out", out, *OPTIONS)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_a_sweep_is_judged(judged: tuple[Path, str]) -> None:
    directory, printed = judged
    rows = [json.loads(line) for line in (directory / "rows.jsonl").read_text().splitlines()]
    settings = [(r["softcap"], r["label_smoothing"], r["temperature_scaled"]) for r in rows]
    assert settings == [(cap, beta, scaled) for cap in (None, 5.0) for beta in (0.0, 0.5) for scaled in (False, True)]
    assert all(row["tokens"] == 320 and row["sce_total"] > 0 for row in rows)
    by_setting = dict(zip(settings, rows, strict=True))
    for cap in (None, 5.0):  # so much smoothing makes a model shy, and a temperature below 1 makes good for it
        smoothed, scaled = by_setting[cap, 0.5, False], by_setting[cap, 0.5, True]
        assert smoothed["mean_confidence"] < smoothed["accuracy"]
        assert scaled["temperature"] < 1 and scaled["accuracy"] == smoothed["accuracy"]
        assert scaled["loss_nats"] < smoothed["loss_nats"] and scaled["ece"] < smoothed["ece"]
    text = (directory / "report.md").read_text()
    assert printed == text
    for picture in ("reliability-d16.svg", "reliability-d16-cap5.svg", "entropy-bound.svg"):
        assert f"]({picture})" in text and (directory / picture).exists()
        assert (directory / picture).with_suffix(".png").exists()
    bounds = text.split("## Entropy and its bounds")[1]
    below = [line.split("|")[-2].strip() for line in bounds.splitlines() if line.startswith("|") and "β" not in line]
    assert below[1:] == ["0"] * 4
    assert text.count("cce-b0") == 4 and "skipped" in text


def test_a_report_takes_another_over(trained: list[Path], judged: tuple[Path, str], tmp_path: Path) -> None:
    """As when the GPU that trained one half is given back before the other half is trained."""
    for out, runs in (("first", trained[1:]), ("second", [tmp_path / "first", trained[0]])):
        done = harness("calibrate", *runs, "--out", tmp_path / out, *OPTIONS)
        assert done.returncode == 0, done.stderr
    second, whole = tmp_path / "second", judged[0]
    assert (second / "rows.jsonl").read_text() == (whole / "rows.jsonl").read_text()
    first = (tmp_path / "first" / "report.md").read_text().splitlines()[2]
    assert first.startswith("- D 16, 2 layers") and first in (second / "report.md").read_text()
    for picture in ("reliability-d16.svg", "reliability-d16-cap5.svg"):
        assert (second / picture).read_bytes() == (whole / picture).read_bytes()
    done = harness("calibrate", tmp_path / "first", trained[1], "--out", tmp_path / "twice", *OPTIONS)
    assert done.returncode == 2
    assert "β 0, D 16, softcap 5, seed 0, is judged twice" in " ".join(done.stderr.split())


def test_what_cannot_be_judged_is_said(trained: list[Path], tmp_path: Path) -> None:
    for arguments, said in (
        ([tmp_path], "holds no training run"),
        ([trained[0], "--loss", "cce"], "no finished curve in"),
        ([trained[0], "--loss", "baselin"], "no run was trained with it, did you mean 'baseline'? (trained with: "),
        ([trained[0], "--tokens", 10**7], "--tokens 10000000: so many judge and as many before them choose the temp"),
    ):
        done = harness("calibrate", *arguments, "--out", tmp_path / "x", "--device", "cpu")
        assert done.returncode == 2
        assert said in " ".join(done.stderr.split())


def test_the_most_tokens_that_are_named_can_be_judged(trained: list[Path], tmp_path: Path) -> None:
    arguments = ("calibrate", trained[0], "--out", tmp_path / "out", "--device", "cpu", "--tokens")
    said = " ".join(harness(*arguments, 10**7).stderr.split())
    most = int(said.rpartition("at most --tokens ")[2])
    done = harness(*arguments, most)
    assert done.returncode == 0, done.stderr
    assert f"judged on {most} held-out tokens" in done.stdout
    assert harness(*arguments, most + 1).returncode == 2


@pytest.fixture(scope="module")
def two_losses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two losses that finish at one label smoothing, as that of examples/training-tiny.yaml."""
    directory = tmp_path_factory.mktemp("two")
    write_text(directory / "text", files=20)
    settings = toy_settings(directory, loss=["baseline", "torchtune-chunked"])
    (directory / "toy.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    done = harness("train", directory / "toy.yaml", "--out", directory / "run", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    return directory / "run"


def test_of_several_losses_one_is_chosen(two_losses: Path, trained: list[Path], tmp_path: Path) -> None:
    done = harness("calibrate", trained[0], two_losses, "--out", tmp_path / "x", *OPTIONS)
    said = " ".join(done.stderr.split())
    assert done.returncode == 2
    assert "has several losses at one label smoothing: baseline, torchtune-chunked; choose one with --loss" in said
    assert "judging" not in said  # before anything is judged
    done = harness("calibrate", two_losses, "--loss", "torchtune-chunked", "--out", tmp_path / "out", *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert "judging" in done.stderr and "torchtune-chunked-b0" in done.stderr
    assert "baseline-b0: not chosen by --loss" in done.stdout
    assert len((tmp_path / "out" / "judged.jsonl").read_text().splitlines()) == 1


def test_a_model_that_is_there_twice_is_found_before_any_is_judged(trained: list[Path], tmp_path: Path) -> None:
    done = harness("calibrate", trained[0], trained[0], "--out", tmp_path / "x", *OPTIONS)
    said = " ".join(done.stderr.split())
    assert done.returncode == 2
    assert "β 0, D 16, seed 0, is judged twice; leave one of them out" in said and "judging" not in said
