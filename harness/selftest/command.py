"""The body of `python -m harness selftest`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from tabulate import tabulate

from harness.analysis.footnotes import shortened
from harness.running import runs
from harness.running.run_directory import Plan, RunDirectory
from harness.selftest.faults import Fault, Group, faults_on, suite_of
from harness.selftest.verdicts import Finding, Outcome, finding

ALL_CAUGHT, SLIPPED_THROUGH, INCONCLUSIVE = 0, 1, 6  # exit codes


def selftest(out: Path | None, wanted_device: str, notice: Callable[[str], None]) -> tuple[list[Finding], str]:
    """Runs every fault that makes sense here, group by group, and says what each got; and the device's name.

    Run directories are left in `out`. Raises UnfitEnvironment if the device that is asked for is not there.
    """
    directory = out or Path(tempfile.mkdtemp(prefix="harness-selftest-"))
    machine = runs.environment(directory / "environment.log")
    if wanted_device == "cuda" and not machine["cuda_available"]:
        raise runs.UnfitEnvironment("torch sees no CUDA GPU here; --device cpu tests what can be tested without one")
    on_gpu = machine["cuda_available"] and wanted_device != "cpu"
    device = "cuda" if on_gpu else "cpu"
    name = runs.device_name(device, machine)
    findings: list[Finding] = []
    for group in Group:
        planted = [fault for fault in faults_on(device) if fault.group is group]
        if not planted:
            continue
        notice(f"{group.value}: {', '.join(fault.name for fault in planted)}")
        suite = suite_of(group, device)
        rows = [row.name for row in suite.implementations]
        plan = Plan(suite=suite, device=device, device_name=name, implementations=rows)
        run = RunDirectory(directory / group.value)
        run.create(plan)
        runs.execute(run, plan, machine, None, None)
        findings += [finding(fault, run.records()) for fault in planted]
    return findings, name


def as_table(findings: list[Finding], left_out: list[Fault]) -> str:
    """Markdown: what was planted, what it had to get, what it got."""
    body = [[f.fault.name, f.wanted, shortened(f.found).replace("|", r"\|"), f.outcome.value] for f in findings]
    body += [[fault.name, "", "needs a GPU", "left out"] for fault in left_out]
    return tabulate(body, headers=["planted", "must get", "got", ""], tablefmt="pipe", disable_numparse=True)


def exit_code(findings: list[Finding]) -> int:
    """1 if anything slipped through, else 6 if a verdict is not sure, else 0."""
    outcomes = {found.outcome for found in findings}
    if Outcome.MISSED in outcomes:
        return SLIPPED_THROUGH
    return INCONCLUSIVE if Outcome.UNSURE in outcomes else ALL_CAUGHT
