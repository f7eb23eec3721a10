"""`python -m harness calibrate`: from options to a report, and from what went wrong to one clear error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import typer

from harness.calibration.report import write_report
from harness.calibration.sweep import judge_runs
from harness.capture.command import one_clear_error
from harness.case import AskedDevice
from harness.exits import fail
from harness.progress import console
from harness.training.execution import choose_device


def calibrate(
    runs: Sequence[Path], losses: Sequence[str], out: Path, tokens: int, classwise: bool, device: AskedDevice
) -> None:
    """Judges the models of `runs` and prints the report. Raises typer.Exit."""
    with one_clear_error():
        chosen = torch.device(choose_device(device))
        judged, left_out = judge_runs(
            runs, losses, tokens, classwise, chosen, lambda path: console.print(f"judging {path}", soft_wrap=True)
        )
        if not judged:
            fail(f"no finished curve in {', '.join(map(str, runs))}: {'; '.join(left_out)}")
        typer.echo(write_report(out, judged, left_out), nl=False)
    console.print(f"report, rows and pictures in {out}", soft_wrap=True)
