"""A suite's cells: what the options ask for, and the run that measures it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import harness
from harness import selection
from harness.analysis.row import Row
from harness.analysis.rows import Rows
from harness.running import planning, runs
from harness.running.run_directory import Plan
from harness.suite_file import load_suite
from implementations.registry import LOWER_BOUND

TIMER = harness.ReplayTimer()

_MACHINE = pytest.StashKey[dict[str, Any]]()

Cell = tuple[str, str]  # case id, implementation


@dataclass(frozen=True)
class Measured:
    """What was learnt of a cell."""

    record: harness.Record
    row: Row


def machine(config: pytest.Config) -> dict[str, Any]:
    """This machine as a worker describes it, asked once: the process that pytest runs in never touches the GPU."""
    if _MACHINE not in config.stash:
        config.stash[_MACHINE] = runs.environment(planning.scratch_log())
    return config.stash[_MACHINE]


def planned(config: pytest.Config) -> Plan:
    """What the options ask for, without the lower bound, which has no time; or a collection error of one sentence."""
    where = config.getoption("harness_where")
    try:
        suite = load_suite(Path(config.getoption("harness_suite")), to_be_run=True)
        untimed = [row.name for row in suite.implementations if row.name == LOWER_BOUND]
        rows = selection.implementations(suite, config.getoption("harness_only"), untimed, prefix="--harness-")
        device = planning.device_for(suite, machine(config))
        asked_where = " ".join(f"--harness-where {condition}" for condition in where)
        return planning.new_plan(suite, rows, selection.condition(where), machine(config), device, asked_where)
    except (ValueError, runs.UnfitEnvironment) as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None


def cells(config: pytest.Config) -> list[Any]:
    """The plan's cells as parameters, a group of benchmarks for each case."""
    plan = planned(config)
    return [
        pytest.param(
            case.id,
            name,
            marks=pytest.mark.benchmark(timer=TIMER, group=case.id),
            id=f"{case.id}-{name}",
        )
        for case in plan.cases()
        for name in plan.implementations
    ]


def measure(config: pytest.Config) -> harness.Run:
    """The whole plan in one run: its rounds are what makes the times of a case comparable."""
    plan = planned(config)
    return harness.run_suite(
        config.getoption("harness_suite"),
        only=plan.implementations,
        where=plan.where.model_dump(exclude_unset=True),
        out=config.getoption("harness_out"),
        device=plan.device,
    )


def by_cell(run: harness.Run) -> dict[Cell, Measured]:
    """The run's records with what is computed of them."""
    rows = Rows(run.records)
    return {(record.case_id, record.implementation): Measured(record, rows.of(record)) for record in run.records}
