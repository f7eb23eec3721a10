"""The commands that read several runs at once; they need neither torch nor a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.progress import console

app = typer.Typer()


@app.command()
def spread(
    first: Annotated[Path, typer.Argument(help="a run directory, or its records.jsonl")],
    second: Annotated[Path, typer.Argument(help="another run of the same suite, on another machine say")],
) -> None:
    """Prints by how much the ratios of two runs of the same code differ, row by row."""
    from harness.analysis.frame import read_records  # noqa: PLC0415  (pandas is for reading only)
    from harness.analysis.spread import spread_report  # noqa: PLC0415

    try:
        typer.echo(spread_report(read_records(first), read_records(second)))
    except (OSError, ValueError) as error:
        console.print(f"error: {error}", style="red", soft_wrap=True, markup=False)
        raise typer.Exit(2) from error
