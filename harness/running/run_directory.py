"""A run on disk: `plan.json` (what was asked for), `records.jsonl` (what was learnt), `logs/` (what workers printed).

Records are only ever appended, a case at a time, each line flushed to the disk. A run that was killed resumes at the
case it was in: `complete_cases` drops the torn line and the half-written case that the kill may have left.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.atomic import new_file
from harness.case import Case, Device
from harness.record import Record
from harness.running.run_kind import PLAN_FILE, Kind, taken_for
from harness.suite import Suite, Where

P = TypeVar("P", bound=BaseModel)


class UnusableRun(ValueError):
    """A run directory that cannot be used as asked; the message says why and what to do."""


def claim(path: Path, *held: Path) -> None:
    """Makes the directory of a new run. Raises UnusableRun if one of `held`, a run's files, is there."""
    if any(file.exists() for file in held):
        raise UnusableRun(f"{path} holds a run already; continue it with --resume {path} or give another --out")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnusableRun(f"run directory {path} cannot be created: {error.strerror}") from error


def read_plan(model: type[P], run: Path, kind: Kind) -> P:
    """What a run was asked for. Raises UnusableRun if `run` holds no run of this kind."""
    file = run / PLAN_FILE
    called = "run" if kind == "suite" else f"{kind} run"
    try:
        return model.model_validate_json(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UnusableRun(f"{run} holds no {called}: {PLAN_FILE} is missing") from error
    except ValidationError as error:
        raise UnusableRun(
            taken_for(run, kind)
            or f"{file} is no {kind}'s, damaged or of another version: {error.error_count()} mistakes, the "
            f"first: {error.errors()[0]['msg']}"
        ) from error


class Plan(BaseModel):
    """What a run was asked to do; a resume does the rest of exactly this."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    suite: Suite
    device: Device
    device_name: str
    implementations: list[str]  # the suite's, less --only and --skip
    where: Where = Where()

    def cases(self) -> list[Case]:
        """The cases to measure, in order."""
        return [case for case in self.suite.cases_on(self.device) if self.where.matches(case)]


class RunDirectory:
    """The files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records_path = path / "records.jsonl"
        self.logs = path / "logs"
        self._plan_path = path / PLAN_FILE

    @property
    def resume_command(self) -> str:
        """What to type to measure the rest."""
        return f"python -m harness run --resume {self.path}"

    def create(self, plan: Plan) -> None:
        """Starts a run. Raises UnusableRun if there is one already."""
        claim(self.path, self._plan_path, self.records_path)
        with new_file(self._plan_path) as temporary:
            temporary.write_text(plan.model_dump_json(indent=1, exclude_unset=True) + "\n", encoding="utf-8")

    def plan(self) -> Plan:
        """What the run was asked for. Raises UnusableRun if this is no run."""
        return read_plan(Plan, self.path, "suite")

    def append(self, records: Iterable[Record]) -> None:
        """Adds the records of one case and waits until they are on the disk."""
        with self.records_path.open("ab") as file:
            for record in records:
                file.write(record.model_dump_json().encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())

    def records(self) -> list[Record]:
        """All records, of this call and earlier ones."""
        if not self.records_path.exists():
            return []
        return [Record.model_validate_json(line) for line in self.records_path.read_bytes().splitlines()]

    def complete_cases(self, plan: Plan) -> set[str]:
        """Ids of the cases that have a record for every implementation; all other lines are removed from the file.

        Raises UnusableRun for a line, other than a torn last one, that is no record.
        """
        if not self.records_path.exists():
            return set()
        content = self.records_path.read_bytes()
        whole, _, torn = content.rpartition(b"\n")
        lines = whole.split(b"\n") if whole else []
        rows: dict[str, set[str]] = {}
        owners: list[str] = []
        for number, line in enumerate(lines, start=1):
            try:
                record = Record.model_validate_json(line)
            except ValidationError as error:
                raise UnusableRun(f"{self.records_path}:{number}: no record of this format: {error}") from error
            rows.setdefault(record.case_id, set()).add(record.implementation)
            owners.append(record.case_id)
        complete = {case for case, done in rows.items() if done >= set(plan.implementations)}
        kept = [line for line, owner in zip(lines, owners, strict=True) if owner in complete]
        if torn or len(kept) < len(lines):
            with new_file(self.records_path) as temporary:
                temporary.write_bytes(b"".join(line + b"\n" for line in kept))
        return complete
