"""Exit codes, the same in every command, and the one way in which a command ends with an error."""

from __future__ import annotations

from typing import NoReturn

import typer

from harness.progress import console

REGRESSION = 1
USAGE = 2  # a mistake in the command or in a file
DISAGREES = 3  # gradients or a loss further off than allowed, and not expected to be
FAILED_CELL = 4  # a crash, a hang, out of memory, and not expected
UNFIT = 5  # this machine cannot tell
INCONCLUSIVE = 6
INTERRUPTED = 130


def fail(message: str, code: int = USAGE) -> NoReturn:
    """Prints one error and ends the command."""
    console.print(f"error: {message}", style="red", soft_wrap=True, markup=False)
    raise typer.Exit(code)
