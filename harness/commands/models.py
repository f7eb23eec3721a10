"""The commands that compute with models of their own: train, capture, inspect, calibrate.

Their bodies are imported when they are called: what they need, torch first of all, no other command should wait for.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


class Device(StrEnum):
    """Devices of the commands that compute in this process."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class HalfOrFloat(StrEnum):
    """Dtypes of `capture`."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(help="training file; may be left out with --resume")] = None,
    out: Annotated[Path | None, typer.Option(help="run directory to create; default runs/CONFIG-TIME")] = None,
    resume: Annotated[Path | None, typer.Option(help="run directory to continue")] = None,
    device: Annotated[Device, typer.Option(help="auto: the GPU if there is one")] = Device.auto,
    loss: Annotated[
        list[str] | None, typer.Option(help="train with this loss instead of the file's (repeatable)")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="commit to record where there is no .git")] = None,
) -> None:
    """Trains a small language model with each loss and compares the curves."""
    from harness.training import command  # noqa: PLC0415  (tokenizers, and torch: for training only)

    command.train(config, out, resume, device.value, loss or [], revision)


@app.command()
def merge(
    runs: Annotated[list[Path], typer.Argument(help="run directories of `train`")],
    out: Annotated[Path, typer.Option(help="run directory to create")],
    quiet: Annotated[
        list[Path] | None, typer.Option(help="run whose times and memory count, since nothing ran beside (repeatable)")
    ] = None,
) -> None:
    """Puts curves that were trained apart, on several GPUs say, into one run and one report."""
    from harness.training import command  # noqa: PLC0415

    command.merge(runs, quiet or [], out)


@app.command()
def capture(
    model: Annotated[str, typer.Argument(help="a checkpoint of `train`, or a Hugging Face model: directory or name")],
    out: Annotated[Path, typer.Option(help="the safetensors file to write")],
    tokens: Annotated[int, typer.Option(min=1, help="N: how many predictions")] = 8192,
    text: Annotated[list[Path] | None, typer.Option(help="text for a Hugging Face model (repeatable)")] = None,
    context: Annotated[int, typer.Option(min=1, help="tokens of a window, of a Hugging Face model")] = 1024,
    dtype: Annotated[HalfOrFloat, typer.Option(help="what the tensors are rounded to")] = HalfOrFloat.bfloat16,
    device: Annotated[Device, typer.Option(help="auto: the GPU if there is one")] = Device.auto,
) -> None:
    """Writes what a model's head sees to a file that suites measure on (inputs: file)."""
    from harness.capture import command  # noqa: PLC0415  (torch: for captures only)

    command.capture(model, out, text or [], tokens, context, dtype.value, device.value)


@app.command()
def inspect(
    captured: Annotated[list[Path], typer.Argument(help="captured files")],
    tile: Annotated[int, typer.Option(min=1, help="classes of a tile")] = 128,
    order: Annotated[list[str] | None, typer.Option(help="only this order of the vocabulary (repeatable)")] = None,
    device: Annotated[Device, typer.Option(help="auto: the GPU if there is one")] = Device.auto,
) -> None:
    """Prints how sparse captured heads are, tile by tile, in several orders of their vocabulary."""
    from harness.capture import command  # noqa: PLC0415

    command.inspect(captured, tile, order or [], device.value)


@app.command()
def calibrate(
    runs: Annotated[list[Path], typer.Argument(help="run directories of `train`; reports, to take over")],
    loss: Annotated[
        list[str] | None, typer.Option(help="judge only curves of this loss (repeatable); default all")
    ] = None,
    out: Annotated[Path, typer.Option(help="directory of the report")] = Path("runs/calibration"),
    tokens: Annotated[
        int, typer.Option(min=1, help="held-out tokens that judge; as many choose the temperature")
    ] = 65536,
    classwise: Annotated[
        bool, typer.Option("--classwise", help="SCE and ACE over classes too: five times the work")
    ] = False,
    device: Annotated[Device, typer.Option(help="auto: the GPU if there is one")] = Device.auto,
) -> None:
    """Judges how well trained models are calibrated, as trained and after temperature scaling."""
    from harness.calibration import command  # noqa: PLC0415

    command.calibrate(runs, loss or [], out, tokens, classwise, device.value)
