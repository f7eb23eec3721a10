"""One run out of several that trained different curves of it: on several GPUs at once, or on other days.

What must be equal for curves to be comparable is compared: model, text, tokenizer, the training but for its label
smoothings, the device's kind. Logs are copied, checkpoints are not. Needs no torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from harness.case import Device
from harness.running.run_directory import UnusableRun
from harness.suite import SuiteImplementation
from harness.training.config import Curve, TrainingConfig
from harness.training.curve_log import CurveLog, Outcome
from harness.training.training_run import TrainingPlan, TrainingRun
from implementations.registry import load


def merge(runs: Sequence[TrainingRun], quiet: Sequence[TrainingRun], out: TrainingRun) -> None:
    """Writes every curve of `runs` into the new run `out`; times and memory are those of `quiet`, if there are any.

    Quiet runs may be shorter: they say what a step costs with nothing else on the machine, the others what is learnt.
    A curve that no run began, since the loss does not support it, is skipped with that reason.
    Raises UnusableRun if `out` exists, if the runs differ in more than losses and label smoothings (quiet ones: and in
    the number of steps), if two of them trained the same curve to its end, or if a quiet run has none of their curves.
    """
    plans = [run.plan() for run in runs]
    for run, plan in zip(runs[1:], plans[1:], strict=True):
        _check_alike(runs[0], plans[0], run, plan, free=_FREE)
    timed = [run.plan() for run in quiet]
    for run, plan in zip(quiet, timed, strict=True):
        _check_alike(runs[0], plans[0], run, plan, free=_FREE | _FREE_IF_QUIET)
    config = _union([plan.config for plan in plans])
    chosen = {curve.id: _longest([run.log(curve) for run in runs]) for curve in config.curves()}
    ids = {curve.id for curve in config.curves()}
    for run, plan in zip(quiet, timed, strict=True):
        if ids.isdisjoint(curve.id for curve in plan.config.curves()):
            raise UnusableRun(f"--quiet {run.path}: none of its curves is merged ({', '.join(sorted(ids))})")
    measured = {curve.id: _longest([run.log(curve) for run in quiet]) for curve in config.curves()}
    out.check_free()
    for curve in config.curves():
        target = out.log(curve)
        if (log := chosen[curve.id]) is not None:
            shutil.copytree(log.path, target.path, ignore=shutil.ignore_patterns("checkpoints"))
        if (log := measured[curve.id]) is not None:
            shutil.rmtree(target.quiet().path, ignore_errors=True)  # of an earlier merge
            shutil.copytree(log.path, target.quiet().path, ignore=shutil.ignore_patterns("checkpoints"))
        begun = target.steps() or target.outcome() is not None
        if not begun and (reason := _unsupported(curve, config, plans[0].device)) is not None:
            target.path.mkdir(parents=True, exist_ok=True)
            target.conclude(Outcome(status="skipped", reason=f"unsupported: {reason}"))
    quieter = [plan.provenance for plan in timed]
    if any(out.log(curve).quiet().path.exists() and measured[curve.id] is None for curve in config.curves()):
        quieter = [*(part for plan in plans for part in plan.quiet), *quieter]
    parts = [part for plan in plans for part in (plan.provenance, *plan.merged)]
    out.create(
        plans[0].model_copy(
            update={
                "config": config,
                "provenance": parts[0],
                "merged": parts[1:],
                "quiet": quieter,
            }
        )
    )


def _unsupported(curve: Curve, config: TrainingConfig, device: Device) -> str | None:
    """Why nobody can train the curve; None if somebody could have."""
    return load(curve.loss.location).supports(config.case(curve, device), device)


_FREE = {"loss", "training.label_smoothing"}
_FREE_IF_QUIET = {
    "training.steps", "training.warmup_steps", "training.evaluate_every", "training.evaluation_tokens",
    "training.checkpoint_every", "training.keep_steps",
}  # fmt: skip


def _check_alike(
    first_run: TrainingRun, first: TrainingPlan, run: TrainingRun, plan: TrainingPlan, free: set[str]
) -> None:
    ours, theirs = _fixed(first), _fixed(plan)
    for key in sorted(ours.keys() - free):
        if ours[key] != theirs[key]:
            raise UnusableRun(
                f"{run.path} cannot be merged with {first_run.path}: {key} is {theirs[key]} there, {ours[key]} here"
            )


def _fixed(plan: TrainingPlan) -> dict[str, object]:
    """What a curve depends on, one level of names."""
    found: dict[str, object] = {"device": plan.device, "corpus_digest": plan.corpus_digest}
    for section in ("model", "data", "tokenizer", "training"):
        found |= {f"{section}.{key}": value for key, value in getattr(plan.config, section).model_dump().items()}
    del found["data.cache"]  # where, not what
    return found


def _union(configs: Sequence[TrainingConfig]) -> TrainingConfig:
    losses: dict[str, SuiteImplementation] = {}
    for config in configs:
        for loss in config.loss:
            if losses.setdefault(loss.name, loss) != loss:
                raise UnusableRun(f"the runs cannot be merged: '{loss.name}' is not the same loss in all of them")
    betas = sorted({beta for config in configs for beta in config.training.label_smoothing})
    training = configs[0].training.model_copy(update={"label_smoothing": betas})
    return configs[0].model_copy(update={"loss": list(losses.values()), "training": training})


def _longest(logs: Sequence[CurveLog]) -> CurveLog | None:
    """The log of a curve that counts: the finished one, else the one with most steps. None if no run has it."""
    there = [log for log in logs if log.path.exists()]
    finished = [log for log in there if (ended := log.outcome()) is not None and ended.status == "finished"]
    if len(finished) > 1:
        raise UnusableRun(f"two runs trained the same curve to its end: {finished[0].path}, {finished[1].path}")
    return finished[0] if finished else max(there, key=lambda log: len(log.steps()), default=None)
