"""The commands that look at the harness itself, the machine and the cards: selftest, doctor, capacity.

Their bodies are imported when they are called, as those of `harness.commands.models`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from harness.commands.models import Device
from harness.exits import UNFIT, USAGE, fail
from harness.progress import console

app = typer.Typer()


def _note(text: str) -> None:
    console.print(text, soft_wrap=True, markup=False)


@app.command()
def selftest(
    out: Annotated[Path | None, typer.Option(help="directory for the runs; default a temporary one")] = None,
    device: Annotated[Device, typer.Option(help="auto: the GPU if there is one")] = Device.auto,
) -> None:
    """Plants implementations that are wrong in one way each and says whether the harness catches them."""
    from harness.running import runs  # noqa: PLC0415
    from harness.running.run_directory import UnusableRun  # noqa: PLC0415
    from harness.selftest import command  # noqa: PLC0415  (numpy: for verdicts only)
    from harness.selftest.faults import faults_on  # noqa: PLC0415

    try:
        findings, name = command.selftest(out, device.value, _note)
    except runs.UnfitEnvironment as error:
        fail(str(error), UNFIT)
    except UnusableRun as error:
        fail(str(error), USAGE)
    done = {found.fault.name for found in findings}
    left_out = [fault for fault in faults_on("cuda") if fault.name not in done]
    typer.echo(command.as_table(findings, left_out))
    caught = sum(found.outcome.value == "caught" for found in findings)
    typer.echo(f"\n{caught} of {len(findings)} on {name}" + (f"; {len(left_out)} need a GPU" if left_out else ""))
    raise typer.Exit(command.exit_code(findings))


@app.command()
def doctor() -> None:
    """Says whether this machine can measure: GPU, throttling, other processes, versions, libraries, A/A noise."""
    from harness import doctor as body  # noqa: PLC0415  (numpy: for the noise)
    from harness.running import runs  # noqa: PLC0415

    try:
        found = body.diagnose(Path(tempfile.mkdtemp(prefix="harness-doctor-")), _note)
    except runs.UnfitEnvironment as error:
        fail(str(error), UNFIT)
    typer.echo(body.as_text(found))
    raise typer.Exit(UNFIT if found.unfit else 0)


@app.command()
def capacity(
    hidden_size: Annotated[int, typer.Option(min=1, help="D")] = 2304,
    vocab_size: Annotated[int, typer.Option(min=2, help="V")] = 256000,
    label_smoothing: Annotated[float, typer.Option(min=0, max=1, help="beta")] = 0.0,
    softcap: Annotated[float | None, typer.Option(help="softcap of the logits")] = None,
    card: Annotated[
        list[int] | None, typer.Option(min=1, help="GiB of a card (repeatable); default 24, 40, 80")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="only this implementation (repeatable)")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON in place of a table")] = False,
) -> None:
    """Finds how many tokens fit on a card, per implementation: inputs, forward and backward."""
    from harness import capacity as body  # noqa: PLC0415
    from harness.case import Case, Inputs  # noqa: PLC0415
    from harness.running import runs  # noqa: PLC0415
    from harness.yaml_source import nearest  # noqa: PLC0415
    from implementations.registry import REGISTRY  # noqa: PLC0415

    for name in only or []:
        if name not in REGISTRY:
            fail(f"no implementation is called '{name}'{nearest(name, list(REGISTRY))}", USAGE)
    cards = sorted(set(card or [24, 40, 80]))
    logs = Path(tempfile.mkdtemp(prefix="harness-capacity-"))
    try:
        machine = runs.environment(logs / "environment.log")
    except runs.UnfitEnvironment as error:
        fail(str(error), UNFIT)
    if not machine["cuda_available"]:
        fail("torch sees no CUDA GPU here, and a CPU has no allocator that could be limited", UNFIT)
    largest = int(machine["gpu"]["memory_bytes"]) / body.GIB
    if cards[-1] > largest:
        fail(f"--card {cards[-1]}: this GPU has {largest:.0f} GiB, and only smaller cards can be acted", UNFIT)
    case = Case(
        tokens=1,
        hidden_size=hidden_size,
        vocab_size=vocab_size,
        label_smoothing=label_smoothing,
        softcap=softcap,
        inputs=Inputs(kind="gaussian"),
    )
    found = list(body.capacities(only or list(REGISTRY), case, cards, logs, _note))
    typer.echo(body.as_json(found, case) if as_json else body.as_table(found, cards))
