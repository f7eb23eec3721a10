"""From a suite, and what is chosen of it, to the plan of a run on this machine and the place of its files."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.case import Device
from harness.running import runs
from harness.running.run_directory import Plan
from harness.selection import InvalidSelection
from harness.suite import Suite, Where


def new_plan(
    suite: Suite, rows: Sequence[str], where: Where, machine: dict[str, Any], device: Device, asked_where: str
) -> Plan:
    """The plan of `rows` on `device`. Raises InvalidSelection, quoting `asked_where`, if it has no case."""
    plan = Plan(
        suite=suite,
        device=device,
        device_name=runs.device_name(device, machine),
        implementations=list(rows),
        where=where,
    )
    if not plan.cases():
        raise InvalidSelection(f"{asked_where} leaves no case of suite '{suite.name}'")
    return plan


def device_for(suite: Suite, machine: dict[str, Any], asked: Device | None = None) -> Device:
    """The device to measure on: `asked`, or the suite's choice.

    Raises InvalidSelection if the suite is not for the device asked for, UnfitEnvironment if this machine has none.
    """
    if asked is None:
        return runs.choose_device(suite, machine)
    if asked not in suite.devices:
        raise InvalidSelection(f"device {asked}: suite '{suite.name}' is for {' or '.join(suite.devices)}")
    return runs.choose_device(suite.model_copy(update={"device": asked}), machine)


def default_directory(suite: Suite) -> Path:
    """Where a run goes that was not told where: named after its suite and the moment."""
    return Path("runs") / f"{suite.name}-{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}"


def scratch_log() -> Path:
    """A log of its own for a worker that belongs to no run; left behind, since an error message may name it."""
    return Path(tempfile.mkdtemp(prefix="harness-")) / "worker.log"
