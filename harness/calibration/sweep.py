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
from harness.capture.source import InvalidSource, from_checkpoint
from harness.case import DType
from harness.running.run_directory import UnusableRun
from harness.training.config import Curve
from harness.training.training_run import TrainingPlan, TrainingRun
from harness.yaml_source import nearest


def judge_runs(
    runs: Sequence[Path],
    losses: Sequence[str],
    tokens: int,
    classwise: bool,
    device: torch.device,
    note: Callable[[str], None],
) -> tuple[list[JudgedModel], list[str]]:
    """Every finished curve of the runs, and a line about each that is left out; a report's models are taken over.

    `losses` are the names of those whose curves are judged; none: all. `tokens` is how many judge; as many before them
    choose the temperature. Raises UnusableRun for what is neither a training run nor a report, for a loss that no run
    has, and for a model that is there twice, InvalidSource if the held-out text is too short, InvalidCorpus if it is
    not there any more.
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
    _check_losses(losses, [plan for _, plan in plans])
    models: list[tuple[TrainingRun, TrainingPlan, Curve]] = []
    for run, plan in plans:
        finished, left = _finished(run, plan, losses)
        left_out += left
        models += [(run, plan, curve) for curve in finished]
    check_once([model.plain.setting for model in judged] + [_setting(plan, curve) for _, plan, curve in models])
    for run, plan, curve in models:
        path = run.log(curve).path
        note(str(path))
        judged.append(judge(path, _setting(plan, curve), described(plan), tokens, classwise, device))
    return judged, left_out


def _finished(run: TrainingRun, plan: TrainingPlan, losses: Sequence[str]) -> tuple[list[Curve], list[str]]:
    """The chosen curves that have finished, and a line about each other. Raises UnusableRun for two at one smoothing.

    Those would be two models of one setting, of which a sweep has one.
    """
    finished: list[Curve] = []
    left_out: list[str] = []
    for curve in plan.config.curves():
        log = run.log(curve)
        outcome = log.outcome()
        if losses and curve.loss.name not in losses:
            left_out.append(f"{log.path}: not chosen by --loss")
        elif outcome is None or outcome.status != "finished":
            left_out.append(f"{log.path}: {'not finished' if outcome is None else outcome.status}")
        else:
            finished.append(curve)
    for first in finished:
        rivals = [curve.loss.name for curve in finished if curve.label_smoothing == first.label_smoothing]
        if len(rivals) > 1:
            raise UnusableRun(
                f"{run.path} has several losses at one label smoothing: {', '.join(rivals)}; choose one with --loss"
            )
    return finished, left_out


def _check_losses(losses: Sequence[str], plans: Sequence[TrainingPlan]) -> None:
    known = list(dict.fromkeys(loss.name for plan in plans for loss in plan.config.loss))
    for name in losses:
        if name not in known:
            hint = f"{nearest(name, known)} (trained with: {', '.join(known) or 'nothing'})"
            raise UnusableRun(f"--loss {name}: no run was trained with it{hint}")


def _setting(plan: TrainingPlan, curve: Curve) -> Setting:
    model = plan.config.model
    return Setting(
        label_smoothing=curve.label_smoothing,
        softcap=model.softcap,
        hidden_size=model.hidden_size,
        vocab_size=model.vocab_size,
        seed=plan.config.training.seed,
    )


def judge(
    checkpoint: Path, setting: Setting, trained: str, tokens: int, classwise: bool, device: torch.device
) -> JudgedModel:
    """One model of that setting, `trained` as it says. Raises as `judge_runs`."""
    dtype: DType = "bfloat16" if device.type == "cuda" else "float32"
    source = from_checkpoint(checkpoint, device)
    if 2 * tokens > source.predictions:
        raise InvalidSource(
            f"--tokens {tokens}: so many judge and as many before them choose the temperature, but the held-out text "
            f"of {checkpoint} has {source.predictions} to predict; at most --tokens {source.predictions // 2}"
        )
    tensors = capture(source, 2 * tokens, dtype, checkpoint).tensors
    hidden, target = tensors.input, tensors.target
    head = Head(tensors.linear_weight, softcap=source.softcap)
    fit = fit_temperature(hidden[:tokens], target[:tokens], head)
    scaled_head = replace(head, temperature=fit.temperature)
    plain, plain_bins = calibration_metrics(hidden[tokens:], target[tokens:], head, classwise=classwise)
    scaled, scaled_bins = calibration_metrics(hidden[tokens:], target[tokens:], scaled_head, classwise=classwise)
    return JudgedModel(
        trained=trained,
        label=setting.label,
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
