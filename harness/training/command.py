"""`python -m harness train`: from options to a run, and from what went wrong to one clear error and an exit code."""

from __future__ import annotations

import datetime
import signal
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import typer

from harness.case import AskedDevice
from harness.exits import FAILED_CELL, INTERRUPTED, UNFIT, USAGE, fail
from harness.progress import console
from harness.running import runs
from harness.running.run_directory import UnusableRun
from harness.selection import InvalidSelection
from harness.training.config import load_training, with_losses
from harness.training.dataset import InvalidCorpus
from harness.training.training_run import TrainingRun
from harness.yaml_source import InvalidFile

if TYPE_CHECKING:
    from harness.training.trainer import Text


def train(
    config: Path | None,
    out: Path | None,
    resume: Path | None,
    device: AskedDevice,
    losses: Sequence[str],
    revision: str | None,
) -> None:
    """Trains every curve and prints the report. Raises typer.Exit, 0 if no curve failed."""
    runs.interrupted.clear()
    signal.signal(signal.SIGTERM, _interrupt)  # ends as Ctrl-C does, resumable
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # a shell's background job keeps ignoring Ctrl-C
        signal.signal(signal.SIGINT, _interrupt)
    run = None
    try:
        if resume is None:
            run, text = _started(config, out, device, losses, revision)
        else:
            if config or out or losses or revision or device != "auto":
                fail("--resume continues what was begun: CONFIG, --out, --device, --loss, --revision do not go with it")
            run = TrainingRun(resume)
            run.plan()  # what is wrong with it is said before torch is imported
            from harness.training.execution import reopen  # noqa: PLC0415

            text = reopen(run)
        from harness.training.execution import execute  # noqa: PLC0415

        failed = execute(run, text)
    except InvalidFile as error:
        for mistake in error.mistakes:
            console.print(str(mistake), style="red", soft_wrap=True, markup=False)
        raise typer.Exit(USAGE) from error
    except (UnusableRun, InvalidSelection, InvalidCorpus, runs.InvalidOptions) as error:
        fail(str(error))
    except runs.UnfitEnvironment as error:
        fail(str(error), UNFIT)
    except KeyboardInterrupt:
        begun = run is not None and (run.path / "plan.json").exists()
        how = f"continue with: {run.resume_command}" if begun and run else "nothing trained"
        fail(f"interrupted; {how}", INTERRUPTED)
    from harness.training.report import write_report  # noqa: PLC0415  (matplotlib is for reading only)

    typer.echo(write_report(run), nl=False)
    console.print(
        f"curves, checkpoints and report in {run.path}; the model of a finished curve, for `harness capture`: "
        f"{run.path / 'curves' / 'LOSS-bBETA'}",
        soft_wrap=True,
    )
    if failed:
        names = ", ".join(curve.id for curve in failed)
        fail(f"failed: {names}; try them again with: {run.resume_command}", FAILED_CELL)


def merge(runs_to_merge: Sequence[Path], quiet: Sequence[Path], out: Path) -> None:
    """Writes one run with the curves of several and prints its report. Raises typer.Exit."""
    from harness.training.merging import merge as merged  # noqa: PLC0415
    from harness.training.report import write_report  # noqa: PLC0415  (matplotlib is for reading only)

    try:
        merged([TrainingRun(path) for path in runs_to_merge], [TrainingRun(path) for path in quiet], TrainingRun(out))
        typer.echo(write_report(TrainingRun(out)), nl=False)
    except UnusableRun as error:
        fail(str(error))
    console.print(f"curves and report in {out}", soft_wrap=True)


def _started(
    path: Path | None, out: Path | None, asked: AskedDevice, losses: Sequence[str], revision: str | None
) -> tuple[TrainingRun, Text]:
    if path is None:
        fail("name a training file, such as examples/training-tiny.yaml, or continue a run with --resume DIR")
    config = with_losses(load_training(path), losses)
    run = TrainingRun(out or Path("runs") / f"{path.stem}-{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}")
    from harness.training import execution  # noqa: PLC0415  (torch: not before the file is known to be right)

    return run, execution.start(run, config, execution.choose_device(asked), revision)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    runs.interrupted.set()  # the exception is lost where it hits a destructor: the next step looks here
    raise KeyboardInterrupt
