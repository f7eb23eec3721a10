"""A toy training: text that is drawn, a model of a few thousand parameters, and steps of milliseconds."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from harness.training.config import TrainingConfig

MakeToy = Callable[..., TrainingConfig]


@pytest.fixture
def toy(tmp_path: Path) -> MakeToy:
    """A config on a small text; `section={key: value}` changes keys."""
    write_text(tmp_path / "text")

    def make(**changes: object) -> TrainingConfig:
        return TrainingConfig.model_validate(toy_settings(tmp_path, **changes))

    return make


@pytest.fixture
def toy_file(tmp_path: Path) -> Callable[..., Path]:
    """The same as a YAML file."""
    write_text(tmp_path / "text")

    def write(**changes: object) -> Path:
        path = tmp_path / "toy.yaml"
        path.write_text(yaml.safe_dump(toy_settings(tmp_path, **changes), sort_keys=False))
        return path

    return write


def toy_settings(directory: Path, **changes: object) -> dict[str, object]:
    settings: dict[str, object] = {
        "model": {"vocab_size": 300, "hidden_size": 16, "layers": 2, "heads": 2, "context": 16},
        "data": {"text": [str(directory / "text")], "held_out_fraction": 0.2, "cache": str(directory / "cache")},
        "training": {"steps": 6, "batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 2},
        "loss": ["baseline"],
    }
    for key, change in changes.items():
        old = settings.get(key)
        settings[key] = old | change if isinstance(old, dict) and isinstance(change, dict) else change
    return settings


def write_text(directory: Path, files: int = 10) -> None:
    """Files of words that are drawn from few, so that merges are found."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 7))) for _ in range(60)]
    directory.mkdir(exist_ok=True)
    for number in range(files):
        (directory / f"{number}.txt").write_text(" ".join(draw.choices(words, k=200)))
