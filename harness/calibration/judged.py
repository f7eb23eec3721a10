"""A judged model as data: `judged.jsonl` of a report, a line per model. What one report has, another can take over.

So models that were trained on different days or GPUs stand in one sweep, though their weights are gone. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from harness.atomic import new_file
from harness.calibration.bins import Bins
from harness.calibration.row import CalibrationRow, EntropyRow, Setting
from harness.running.run_directory import UnusableRun
from harness.training.training_run import TrainingPlan

JUDGED = "judged.jsonl"


@dataclass(frozen=True)
class JudgedModel:
    """A model's rows: as trained, scaled; the bins of both; its entropies beside what bounds them."""

    label: str
    trained: str  # how, where and on what
    plain: CalibrationRow
    scaled: CalibrationRow
    plain_bins: Bins
    scaled_bins: Bins
    entropy: EntropyRow


_LINE = TypeAdapter(JudgedModel)


def write_judged(judged: Sequence[JudgedModel], directory: Path) -> None:
    with new_file(directory / JUDGED) as temporary:
        temporary.write_bytes(b"".join(_LINE.dump_json(model) + b"\n" for model in judged))


def read_judged(directory: Path) -> list[JudgedModel]:
    """The models of the report in `directory`, none if there is no report. Raises UnusableRun for a damaged one."""
    path = directory / JUDGED
    if not path.is_file():
        return []
    try:
        return [_LINE.validate_json(line) for line in path.read_bytes().splitlines()]
    except ValidationError as error:
        raise UnusableRun(f"{path} is damaged or of another version: {error.errors()[0]['msg']}") from error


def check_once(settings: Iterable[Setting]) -> None:
    """Raises UnusableRun if two models have the same setting: a sweep has a row for each."""
    seen = set()
    for setting in settings:
        if setting in seen:
            raise UnusableRun(f"{setting.label}, seed {setting.seed}, is judged twice; leave one of them out")
        seen.add(setting)


def described(plan: TrainingPlan) -> str:
    """What a report says of a training."""
    model, training, provenance = plan.config.model, plan.config.training, plan.provenance
    return (
        f"D {model.hidden_size}, {model.layers} layers, V {model.vocab_size}, {training.steps} steps, "
        f"seed {training.seed}: trained on {provenance.device_name}, {provenance.code}, {provenance.started}; "
        f"text {plan.corpus_digest[:12]}"
    )
