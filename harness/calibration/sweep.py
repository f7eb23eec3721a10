"""Judges the models of training runs on held-out tokens: as trained, and after a temperature fitted on others.

The held-out text's first tokens choose the temperature, the next as many judge. A model is judged in the arithmetic
that it was trained in: hidden states and head rounded to bf16 on a GPU, fp32 on a CPU; sums and all that follows in
fp32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from harness.calibration.head import Head
from harness.calibration.judged import JudgedModel, check_once, described, read_judged
from harness.calibration.measured_entropy import measured_entropy
from harness.calibration.metrics import calibration_metrics
from harness.calibration.row import CalibrationRow, EntropyRow, Setting
from harness.calibration.temperature import fit_temperature
from harness.capture.activations import capture
from harness.capture.source import from_checkpoint
from harness.case import DType
from harness.training.training_run import TrainingPlan, TrainingRun


def judge_runs(
    runs: Sequence[Path], tokens: int, classwise: bool, device: torch.device, note: Callable[[str], None]
) -> tuple[list[JudgedModel], list[str]]:
    """Every finished curve of the runs, and a line about each that is left out; a report's models are taken over.

    `tokens` is how many judge; as many before them choose the temperature. Raises UnusableRun for what is neither a
    training run nor a report, and for a model that is there twice, InvalidSource if the held-out text is too short,
    InvalidCorpus if it is not there any more.
    """
    plans: list[tuple[TrainingRun, TrainingPlan]] = []
    judged: list[JudgedModel] = []
    left_out: list[str] = []
    for path in runs:  # what is wrong with the last one is said before the first one is judged
        if earlier := read_judged(path):
            judged += earlier
        else:
            run = TrainingRun(path)
            plans.append((run, run.plan()))
    for run, plan in plans:
        for curve in plan.config.curves():
            log = run.log(curve)
            outcome = log.outcome()
            if outcome is None or outcome.status != "finished":
                left_out.append(f"{log.path}: {'not finished' if outcome is None else outcome.status}")
                continue
            note(str(log.path))
            judged.append(judge(log.path, described(plan), tokens, classwise, device))
    check_once(judged)
    return judged, left_out


def judge(checkpoint: Path, trained: str, tokens: int, classwise: bool, device: torch.device) -> JudgedModel:
    """One model, `trained` as it says. Raises as `judge_runs`."""
    dtype: DType = "bfloat16" if device.type == "cuda" else "float32"
    source = from_checkpoint(checkpoint, device)
    tensors = capture(source, 2 * tokens, dtype, checkpoint).tensors
    hidden, target = tensors.input, tensors.target
    head = Head(tensors.linear_weight, softcap=source.softcap)
    fit = fit_temperature(hidden[:tokens], target[:tokens], head)
    scaled_head = replace(head, temperature=fit.temperature)
    plain, plain_bins = calibration_metrics(hidden[tokens:], target[tokens:], head, classwise=classwise)
    scaled, scaled_bins = calibration_metrics(hidden[tokens:], target[tokens:], scaled_head, classwise=classwise)
    setting = Setting(
        label_smoothing=float(source.origin["label_smoothing"]),
        softcap=source.softcap,
        hidden_size=hidden.shape[1],
        vocab_size=head.vocab_size,
        seed=int(source.origin["seed"]),
    )
    capped = "" if source.softcap is None else f", softcap {source.softcap:g}"
    return JudgedModel(
        trained=trained,
        label=f"β {setting.label_smoothing:g}, D {setting.hidden_size}{capped}",
        plain=CalibrationRow(setting, plain),
        scaled=CalibrationRow(setting, scaled, temperature=fit.temperature, temperature_scaled=True),
        plain_bins=plain_bins,
        scaled_bins=scaled_bins,
        entropy=_entropy(setting, hidden[tokens:], head),
    )


def _entropy(setting: Setting, hidden: torch.Tensor, head: Head) -> EntropyRow:
    found = measured_entropy(hidden, head)
    least = float(found.entropy_nats.min())
    return EntropyRow(
        setting=setting,
        mean_nats=float(found.entropy_nats.mean()),
        least_nats=least,
        bound_of_its_logits_nats=float(found.centred_logit_bound_nats.mean()),
        bound_of_head_nats=float(found.centred_head_bound_nats.mean()),
        theorem_bound_nats=found.theorem_bound_nats,
        maximum_nats=math.log(setting.vocab_size),
        violations=int((found.entropy_nats < found.centred_logit_bound_nats - 1e-4).sum()),
    )
