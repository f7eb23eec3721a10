"""The report of a training run: heading, parity table, what was skipped, the picture. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

from harness.atomic import new_file
from harness.record import Provenance
from harness.training.curves import BASELINE, YARDSTICK, TrainedCurve, draw, find, read_curves
from harness.training.parity import parity_rows, parity_table
from harness.training.training_run import TrainingPlan, TrainingRun


def write_report(run: TrainingRun) -> str:
    """Draws the curves and writes report.md into the run's directory; returns its text. Raises UnusableRun."""
    plan = run.plan()
    curves = read_curves(run, plan.config)
    pictures = draw(curves, run.path)
    text = markdown_report(plan, curves)
    if pictures:
        text += f"\n![loss, gradient norm and distance to the baseline of every curve]({pictures[0].name})\n"
    with new_file(run.path / "report.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text


def markdown_report(plan: TrainingPlan, curves: Sequence[TrainedCurve]) -> str:
    """The report without its picture."""
    lines = [*_heading(plan), "", parity_table(parity_rows(curves)) or "No curve has a step yet.", "", *_legend(curves)]
    told = [line for curve in curves for line in _figures(curve)]
    if told:
        lines += ["", "How a loss says that it computed the batch of a step:", "", *told]
    left = [_ended(curve) for curve in curves if curve.outcome is None or curve.outcome.status != "finished"]
    if left:
        lines += ["", "Not trained to the end:", "", *left]
    return "\n".join(lines) + "\n"


def _heading(plan: TrainingPlan) -> list[str]:
    model, training = plan.config.model, plan.config.training
    head = "tied" if model.tied else "untied"
    softcap = "" if model.softcap is None else f", softcap {model.softcap:g}"
    precision = "bf16 operands of the loss, fp32 parameters" if plan.device == "cuda" else "fp32"
    return [
        "# Training curves",
        "",
        *(f"- {where}" for where in dict.fromkeys(map(_origin, (plan.provenance, *plan.merged)))),
        *(f"- time and memory: {where}" for where in dict.fromkeys(map(_origin, plan.quiet))),
        f"- model: V {model.vocab_size}, D {model.hidden_size}, {model.layers} layers, {model.heads} heads, "
        f"context {model.context}, {head} head{softcap}; {precision}",
        f"- {training.steps} steps of {training.batch_size} windows of {model.context} tokens, seed {training.seed}; "
        "every curve from the same weights on the same batches",
        f"- text: {plan.corpus_description}, digest {plan.corpus_digest[:12]}",
    ]


def _origin(provenance: Provenance) -> str:
    packages = provenance.environment.get("packages")
    torch = packages.get("torch") if isinstance(packages, dict) else None
    return f"{provenance.device_name}, torch {torch}, {provenance.code}, {provenance.started}"


def _legend(curves: Sequence[TrainedCurve]) -> list[str]:
    cold = max((sum(not step.warm for step in curve.quiet or curve.steps) for curve in curves), default=0)
    apart = sum(bool(curve.quiet) for curve in curves)
    betas = {curve.label_smoothing for curve in curves}
    missing = sorted(b for b in betas if find(curves, BASELINE, b) is None or find(curves, YARDSTICK, b) is None)
    lines = [
        f"A gap is the largest distance of a curve to `{BASELINE}` at the same β, the step where it is, and the root "
        f"mean square over all steps. The yardstick is that of `{YARDSTICK}`: two trainings by torch whose arithmetic "
        "is rounded differently. Held-out: nats per token without label smoothing, by eager torch for every curve.",
        f"step ms and tokens/s are medians, peak MiB is the largest, without the first steps of each process (at most "
        f"{cold} of a curve here), in which kernels are compiled and tuned.",
    ]
    if apart:
        steps = max(len(curve.quiet) for curve in curves)
        lines.append(
            f"Times, of {apart} curves, are of a run apart of at most {steps} steps, with nothing else on the machine; "
            "the curves themselves shared it with other trainings, which losses and memory do not mind."
        )
    if missing:
        listed = ", ".join(f"{beta:g}" for beta in missing)
        lines.append(f"No yardstick at β = {listed}: it takes both `{BASELINE}` and `{YARDSTICK}`.")
    return [line for pair in zip(lines, [""] * len(lines), strict=True) for line in pair][:-1]


def _figures(curve: TrainedCurve) -> list[str]:
    told = [(evaluation.step, evaluation.figures) for evaluation in curve.evaluations if evaluation.figures]
    return [
        f"- `{curve.loss}`, β = {curve.label_smoothing:g}, step {step}: "
        + ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in figures.items())
        for step, figures in told
    ]


def _ended(curve: TrainedCurve) -> str:
    name = f"- `{curve.loss}`, β = {curve.label_smoothing:g}"
    if curve.outcome is None:
        return f"{name}: {f'at step {curve.steps[-1].step}' if curve.steps else 'not begun'}"
    return f"{name}: {curve.outcome.status}, {curve.outcome.reason}"
