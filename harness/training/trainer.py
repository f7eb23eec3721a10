"""One curve: the same model from the same weights on the same batches, with one loss.

Precision on a GPU: the parameters are fp32, and are what AdamW updates; the layers run under bf16 autocast; the head's
two operands, hidden states (N, D) and weight (V, D), are cast to bf16 by a differentiable `.to`. So a loss gets what
the suites measure it on, two bf16 tensors, whatever its own autocast rules are, and the casts' backward hands its bf16
gradients to the fp32 weights, where steps smaller than a bf16 ulp still add up. On a CPU everything is fp32.
Logits are the loss's own business; only the held-out text is judged by eager torch, the same for every curve.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from harness.training.batches import TokenFiles, batch, evaluation_windows
from harness.training.checkpoint import (
    keep_model,
    latest_checkpoint,
    load_checkpoint,
    restore_optimizer,
    save_checkpoint,
)
from harness.training.config import Curve, TrainingConfig, TrainingSettings
from harness.training.curve_log import CurveLog, Evaluation, Step
from harness.training.model import LanguageModel
from harness.worker.device import synchronize
from implementations.baseline import eager_loss
from implementations.contract import LossFunction, TellsFigures

COLD_STEPS = 10  # of a process: compilation, autotuning and the allocator's growth are over by then
_BETAS = (0.9, 0.95)  # a second moment of 20 steps follows a short training
_FINAL_RATE = 0.1  # of the learning rate, where cosine ends
_IGNORE_INDEX = -100  # no target has it: every position of a window has a successor


@dataclass(frozen=True)
class Text:
    """What every curve of a run reads."""

    files: TokenFiles
    tokenizer: Tokenizer


def train_curve(
    curve: Curve,
    config: TrainingConfig,
    loss_function: LossFunction,
    text: Text,
    device: torch.device,
    log: CurveLog,
    note: Callable[[Step], None],
) -> None:
    """Trains `curve` to its last step, from its last checkpoint if it has one; tells `note` every step.

    Raises FloatingPointError when loss or gradient is no number, and whatever the loss raises.
    """
    settings = config.training
    torch.manual_seed(settings.seed)  # on the CPU, so that every device starts from the same weights
    model = LanguageModel(config.model).to(device)
    done = 0
    latest = latest_checkpoint(log.checkpoints)
    if latest is not None:
        loaded = load_checkpoint(latest, device)
        model, done = loaded.model, loaded.step
    optimizer = _optimizer(model, settings, device)
    if latest is not None and done < settings.steps:
        restore_optimizer(latest, optimizer, device)
    log.cut_back(done)
    training, held_out = text.files.training(), text.files.held_out()
    windows = evaluation_windows(held_out, config.model.context, settings.evaluation_tokens)
    for number in range(done + 1, settings.steps + 1):
        tokens = batch(training, settings.seed, number, settings.batch_size, config.model.context)
        step = _step(number, model, optimizer, loss_function, tokens, curve, settings, cold=number <= done + COLD_STEPS)
        log.append(step)
        note(step)
        if _is_due(number, settings.evaluate_every, settings.steps):
            held_out_loss = evaluate(model, windows, settings.batch_size)
            told = figures(model, loss_function, torch.from_numpy(tokens).to(device), curve.label_smoothing)
            log.append(Evaluation(step=number, held_out_loss=held_out_loss, figures=told))
        if number in settings.keep_steps:
            keep_model(log.checkpoints, model, text.tokenizer, config, curve, number)
        if _is_due(number, settings.checkpoint_every, settings.steps):
            log.sync()
            moments = optimizer if number < settings.steps else None
            save_checkpoint(log.checkpoints, model, moments, text.tokenizer, config, curve, number)


def learning_rate(step: int, settings: TrainingSettings) -> float:
    """The rate of `step`, which counts from 1: linear up to the warmup's last, then as the schedule says."""
    if step <= settings.warmup_steps:
        return settings.learning_rate * step / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.learning_rate
    progress = (step - settings.warmup_steps) / (settings.steps - settings.warmup_steps)
    share = _FINAL_RATE + (1 - _FINAL_RATE) * (1 + math.cos(math.pi * progress)) / 2
    return settings.learning_rate * share


def head_operands(model: LanguageModel, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """`input` (N, D) and `linear_weight` (V, D) of the loss for `tokens` (B, T), in the dtype of the device."""
    on_gpu = tokens.device.type == "cuda"
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=on_gpu):
        hidden = model.hidden_states(tokens)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    return hidden.flatten(0, 1).to(dtype), model.head_weight.to(dtype)


def batch_loss(model: LanguageModel, loss_function: LossFunction, windows: Tensor, label_smoothing: float) -> Tensor:
    """The mean loss of `windows` (B, T + 1): every token but the last predicts its successor."""
    hidden, weight = head_operands(model, windows[:, :-1])
    return loss_function(hidden, weight, windows[:, 1:].flatten(), **_settings(model, label_smoothing))


def figures(
    model: LanguageModel, loss_function: LossFunction, windows: Tensor, label_smoothing: float
) -> dict[str, float]:
    """What the loss says of how it computes `windows` (B, T + 1) by the weights as they are: {} from most.

    Computed on copies of the head's operands, so that no gradient of the model is touched.
    """
    if not isinstance(loss_function, TellsFigures):
        return {}
    with torch.no_grad():
        hidden, weight = (operand.clone().requires_grad_() for operand in head_operands(model, windows[:, :-1]))
    with torch.enable_grad():
        return loss_function.figures(
            hidden,
            weight,
            windows[:, 1:].flatten(),
            upstream=torch.ones((), device=hidden.device),
            **_settings(model, label_smoothing),
        )


def _settings(model: LanguageModel, label_smoothing: float) -> dict[str, Any]:
    """What the loss is told beside its operands."""
    return {
        "linear_bias": None,
        "label_smoothing": label_smoothing,
        "ignore_index": _IGNORE_INDEX,
        "softcap": model.softcap,
        "reduction": "mean",
    }


@torch.no_grad()
def evaluate(model: LanguageModel, windows: NDArray[np.int64], batch_size: int) -> float:
    """Nats per token of `windows` (W, T + 1), by eager torch without label smoothing."""
    device = model.head_weight.device
    total = 0.0
    for start in range(0, len(windows), batch_size):
        part = torch.from_numpy(windows[start : start + batch_size]).to(device)
        total += batch_loss(model, eager_loss, part, 0.0).item() * len(part)
    return total / len(windows)


def _step(
    number: int,
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    loss_function: LossFunction,
    tokens: NDArray[np.int64],  # (B, T + 1)
    curve: Curve,
    settings: TrainingSettings,
    cold: bool,
) -> Step:
    device = model.head_weight.device
    windows = torch.from_numpy(tokens).to(device)
    rate = learning_rate(number, settings)
    for group in optimizer.param_groups:
        group["lr"] = rate
    synchronize(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    optimizer.zero_grad()
    loss = batch_loss(model, loss_function, windows, curve.label_smoothing)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip or math.inf)
    optimizer.step()
    synchronize(device)
    seconds = time.perf_counter() - started
    for name, value in (("loss", loss.item()), ("gradient norm", norm.item())):
        if not math.isfinite(value):
            raise FloatingPointError(f"the {name} is {value} at step {number}")
    return Step(
        step=number,
        loss=loss.item(),
        grad_norm=norm.item(),
        learning_rate=rate,
        step_ms=1e3 * seconds,
        tokens_per_s=windows[:, 1:].numel() / seconds,
        peak_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        warm=not cold,
    )


def _optimizer(model: LanguageModel, settings: TrainingSettings, device: torch.device) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=_BETAS, fused=device.type == "cuda")


def _is_due(step: int, every: int | None, last: int) -> bool:
    return step == last or (every is not None and step % every == 0)
