"""What a run did not measure, seen from its plan: cases still missing, and what its options left out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue

from harness.analysis.formats import counted
from harness.record import Record
from harness.running.run_directory import Plan, RunDirectory, UnusableRun
from harness.running.run_kind import PLAN_FILE


def coverage(run: Path, records: Sequence[Record]) -> list[str]:
    """Lines for the report's head; none for a run that measured its whole suite, or for a bare records.jsonl."""
    if not has_plan(run):
        return []
    try:
        plan = RunDirectory(run).plan()
    except UnusableRun:
        return [f"**{PLAN_FILE} was written by another version of the harness: cases may be missing**"]
    return [*_missing(run, plan, records), *_left_out(plan)]


def has_plan(run: Path) -> bool:
    """Whether `run` is a run directory, and no bare file."""
    return (run / PLAN_FILE).is_file()


def _missing(run: Path, plan: Plan, records: Sequence[Record]) -> list[str]:
    done: dict[str, set[str]] = {}
    for record in records:
        done.setdefault(record.case_id, set()).add(record.implementation)
    cases = plan.cases()
    measured = sum(done.get(case.id, set()) >= set(plan.implementations) for case in cases)
    if measured == len(cases):
        return []
    planned = counted(len(cases), "planned case")
    return [f"**{measured} of {planned} measured**; continue with: `{RunDirectory(run).resume_command}`"]


def _left_out(plan: Plan) -> list[str]:
    lines = []
    rows = [row.name for row in plan.suite.implementations if row.name not in plan.implementations]
    if rows:
        lines.append(f"left out: {', '.join(rows)} (--only/--skip)")
    conditions = plan.where.model_dump(mode="json", exclude_unset=True)
    if conditions:
        where = " ".join(f"--where {key}={_alternatives(values)}" for key, values in conditions.items())
        whole = counted(len(plan.suite.cases_on(plan.device)), "case")
        lines.append(f"left out: all but {len(plan.cases())} of the suite's {whole} (`{where}`)")
    return lines


def _alternatives(values: list[JsonValue] | None) -> str:
    return "|".join(_as_given(value) for value in values or [None])


def _as_given(value: JsonValue) -> str:
    """A value as --where takes it: 0.1, none, bfloat16, zipf-weak."""
    if isinstance(value, dict) and set(value) == {"kind"}:
        value = value["kind"]
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)
