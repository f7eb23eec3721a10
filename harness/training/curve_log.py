"""What is known of one curve, on the disk: a line per step, a line per evaluation, and how it ended.

Lines are appended and may run ahead of the last checkpoint; a resumed training first cuts them back to it. A line that
a kill tore is not there, to whoever reads. Needs no torch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, Field

from harness.atomic import new_file
from harness.case import DATA

OutcomeStatus = Literal["finished", "skipped", "failed"]


class _Line(BaseModel):
    model_config = DATA


class Step(_Line):
    """One step of training."""

    step: Annotated[int, Field(ge=1)]
    loss: float  # of the batch, smoothed as the curve's label smoothing says
    grad_norm: float  # of the whole gradient, before it is clipped
    learning_rate: float
    step_ms: float  # forward, backward and update, until the device is done; not the reading of the batch
    tokens_per_s: float
    peak_bytes: int | None  # of the device's memory within the step; None on a CPU
    warm: bool  # False for the first steps of a process, which compile, tune and allocate


class Evaluation(_Line):
    """The held-out text after a step."""

    step: Annotated[int, Field(ge=1)]
    held_out_loss: float  # nats per token, eager torch without label smoothing, whatever the curve is trained with
    figures: dict[str, float] = {}  # what a loss says of how it computed the step's batch; most say nothing


class Outcome(_Line):
    """How a curve ended. None of this is written for one that has not."""

    status: OutcomeStatus
    reason: str | None = None  # why it was skipped or failed


L = TypeVar("L", Step, Evaluation)


class CurveLog:
    """The directory of one curve."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._steps = path / "steps.jsonl"
        self._evaluations = path / "evaluations.jsonl"
        self._outcome = path / "outcome.json"

    def quiet(self) -> CurveLog:
        """The same curve on a machine that did nothing else: there for its times and its memory."""
        return CurveLog(self.path / "quiet")

    def append(self, line: Step | Evaluation) -> None:
        """Adds a line; it can be read at once, and survives a loss of power after `sync`."""
        path = self._steps if isinstance(line, Step) else self._evaluations
        self.path.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(line.model_dump_json() + "\n")

    def sync(self) -> None:
        """Waits until all lines are on the disk: a checkpoint must not be ahead of them."""
        for path in (self._steps, self._evaluations):
            if path.exists():
                with path.open("ab") as file:
                    os.fsync(file.fileno())

    def steps(self) -> list[Step]:
        return _lines(self._steps, Step)

    def evaluations(self) -> list[Evaluation]:
        return _lines(self._evaluations, Evaluation)

    def cut_back(self, step: int) -> None:
        """Forgets what came after `step`."""
        for path, lines in ((self._steps, self.steps()), (self._evaluations, self.evaluations())):
            with new_file(path) as temporary:
                kept = [line.model_dump_json() for line in lines if line.step <= step]
                temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def outcome(self) -> Outcome | None:
        """How the curve ended, or None if it has not."""
        return Outcome.model_validate_json(self._outcome.read_text()) if self._outcome.exists() else None

    def conclude(self, outcome: Outcome) -> None:
        with new_file(self._outcome) as temporary:
            temporary.write_text(outcome.model_dump_json() + "\n", encoding="utf-8")

    def reopen(self) -> None:
        """Forgets how the curve ended, to try once more."""
        self._outcome.unlink(missing_ok=True)


def _lines(path: Path, model: type[L]) -> list[L]:
    if not path.exists():
        return []
    whole, _, _torn = path.read_bytes().rpartition(b"\n")
    return [model.model_validate_json(line) for line in whole.split(b"\n") if line]
