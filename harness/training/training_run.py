"""A training run on disk: `plan.json`, a directory per curve, and the report. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from harness.atomic import new_file
from harness.case import Device
from harness.record import Provenance
from harness.running.run_directory import claim, read_plan
from harness.running.run_kind import PLAN_FILE
from harness.training.config import Curve, TrainingConfig
from harness.training.curve_log import CurveLog


class TrainingPlan(BaseModel):
    """What a training run was asked to do, on which text and machine; a resume does the rest of exactly this."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: TrainingConfig
    device: Device
    corpus_digest: str
    corpus_description: str
    provenance: Provenance
    merged: list[Provenance] = []  # of the other runs that curves were taken from; `harness.training.merging`
    quiet: list[Provenance] = []  # of runs with nothing else on the machine, whose times and memory count


class TrainingRun:
    """The files of one training run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._plan_path = path / PLAN_FILE

    @property
    def resume_command(self) -> str:
        """What to type to train the rest."""
        return f"python -m harness train --resume {self.path}"

    def log(self, curve: Curve) -> CurveLog:
        return CurveLog(self.path / "curves" / curve.id)

    def check_free(self) -> None:
        """Raises UnusableRun if a run cannot begin here; before the text is read, not after."""
        claim(self.path, self._plan_path)

    def create(self, plan: TrainingPlan) -> None:
        with new_file(self._plan_path) as temporary:
            temporary.write_text(plan.model_dump_json(indent=1) + "\n", encoding="utf-8")

    def plan(self) -> TrainingPlan:
        """What the run was asked for. Raises UnusableRun if this is no training run."""
        return read_plan(TrainingPlan, self.path, "training")
