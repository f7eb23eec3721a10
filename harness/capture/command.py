"""`python -m harness capture` and `inspect`: from options to output, and from what went wrong to one clear error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import typer

from harness.capture import describe
from harness.capture.orders import ORDERS
from harness.capture.source import InvalidSource
from harness.case import AskedDevice, DType
from harness.exits import UNFIT, fail
from harness.running.run_directory import UnusableRun
from harness.running.runs import UnfitEnvironment
from harness.training.dataset import InvalidCorpus
from harness.training.execution import choose_device


def capture(
    model: str, out: Path, text: list[Path], tokens: int, context: int, dtype: DType, device: AskedDevice
) -> None:
    """Writes the captured file and prints what it is. Raises typer.Exit."""
    with one_clear_error():
        typer.echo(
            describe.capture_to(
                model, out, text=text, tokens=tokens, context=context, dtype=dtype, device=_device(device)
            )
        )


def inspect(captured: Sequence[Path], tile: int, orders: list[str], device: AskedDevice) -> None:
    """Prints the sparsity of every file in every order. Raises typer.Exit."""
    with one_clear_error():
        for path in captured:
            typer.echo(describe.inspect(path, tile=tile, orders=orders or list(ORDERS), device=_device(device)) + "\n")


def _device(asked: AskedDevice) -> torch.device:
    return torch.device(choose_device(asked))


@contextmanager
def one_clear_error() -> Iterator[None]:
    """What a capture cannot be made from becomes one error and an exit code; `calibrate` captures too."""
    try:
        yield
    except (InvalidSource, InvalidCorpus, UnusableRun) as error:
        fail(str(error))
    except UnfitEnvironment as error:
        fail(str(error), UNFIT)
