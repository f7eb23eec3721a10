"""Checkpoints: all that a training needs to go on, and all that anyone else needs to use the model.

A checkpoint is a directory `step-NNNNNN` with `model.safetensors` (fp32), `config.json` (the training file's content,
the curve and the step), `tokenizer.json` and, but after the last step, `state.pt` (the optimizer's moments, two thirds
of the bytes). It appears whole or not at all.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load_model, save_model
from tokenizers import Tokenizer

from harness.atomic import new_directory
from harness.running.run_directory import UnusableRun
from harness.training.config import Curve, TrainingConfig
from harness.training.model import LanguageModel

MODEL, CONFIG, TOKENIZER, STATE = "model.safetensors", "config.json", "tokenizer.json", "state.pt"


class CheckpointConfig(BaseModel):
    """`config.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    loss: str  # the implementation's name
    label_smoothing: float
    training: TrainingConfig


@dataclass(frozen=True)
class Checkpoint:
    """A model as it was after `step` steps."""

    model: LanguageModel
    tokenizer: Tokenizer
    config: TrainingConfig
    step: int
    loss: str
    label_smoothing: float


def save_checkpoint(
    directory: Path,
    model: LanguageModel,
    optimizer: torch.optim.Optimizer | None,
    tokenizer: Tokenizer,
    config: TrainingConfig,
    curve: Curve,
    step: int,
) -> Path:
    """Writes `directory`/step-NNNNNN, and then removes the earlier ones. No optimizer: nothing is to go on from it."""
    path = directory / f"step-{step:06d}"
    with new_directory(path) as temporary:
        _write_model(temporary, model, tokenizer, config, curve, step)
        if optimizer is not None:
            torch.save(optimizer.state_dict(), temporary / STATE)
    for older in _checkpoints(directory)[:-1]:
        shutil.rmtree(older)
    return path


def keep_model(
    directory: Path, model: LanguageModel, tokenizer: Tokenizer, config: TrainingConfig, curve: Curve, step: int
) -> Path:
    """Writes `directory`/kept-NNNNNN: a model to look at, which stays, and from which no training goes on."""
    path = directory / f"kept-{step:06d}"
    with new_directory(path) as temporary:
        _write_model(temporary, model, tokenizer, config, curve, step)
    return path


def _write_model(
    directory: Path, model: LanguageModel, tokenizer: Tokenizer, config: TrainingConfig, curve: Curve, step: int
) -> None:
    save_model(model, str(directory / MODEL))
    written = CheckpointConfig(step=step, loss=curve.loss.name, label_smoothing=curve.label_smoothing, training=config)
    (directory / CONFIG).write_text(written.model_dump_json(indent=1) + "\n", encoding="utf-8")
    tokenizer.save(str(directory / TOKENIZER))


def latest_checkpoint(directory: Path) -> Path | None:
    """The last checkpoint in `directory`, if there is one."""
    found = _checkpoints(directory)
    return found[-1] if found else None


def load_checkpoint(path: Path, device: torch.device | str) -> Checkpoint:
    """The model in `path`, a checkpoint or the directory of a curve, of which it is the last one.

    The weights are fp32, on `device`, and take gradients. Raises UnusableRun if there is none.
    """
    path = latest_checkpoint(path / "checkpoints") or latest_checkpoint(path) or path
    missing = [name for name in (MODEL, CONFIG, TOKENIZER) if not (path / name).is_file()]
    if missing:
        raise UnusableRun(f"{path} holds no checkpoint: {', '.join(missing)} missing")
    try:
        config = CheckpointConfig.model_validate_json((path / CONFIG).read_text(encoding="utf-8"))
    except ValidationError as error:
        raise UnusableRun(f"{path / CONFIG} is of another version: {error.errors()[0]['msg']}") from error
    model = LanguageModel(config.training.model)
    load_model(model, str(path / MODEL))
    return Checkpoint(
        model=model.to(device),
        tokenizer=Tokenizer.from_file(str(path / TOKENIZER)),
        config=config.training,
        step=config.step,
        loss=config.loss,
        label_smoothing=config.label_smoothing,
    )


def restore_optimizer(path: Path, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Gives `optimizer` the moments that the checkpoint in `path` has."""
    optimizer.load_state_dict(torch.load(path / STATE, map_location=device, weights_only=True))


def _checkpoints(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("step-*") if path.suffix != ".new")
