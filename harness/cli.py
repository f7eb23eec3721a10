"""The command line. Progress goes to stderr, results to stdout.

Exit codes: 0 ok; 1 a regression, or a planted fault slipped through; 2 usage or suite error; 3 an implementation
disagrees; 4 unexpected failure of a cell; 5 unfit environment; 6 inconclusive; 130 interrupted or out of budget
(continue with --resume).
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from tabulate import tabulate

from harness import __version__, selection
from harness.commands import inspection, models, reading
from harness.exits import FAILED_CELL, INTERRUPTED, UNFIT, USAGE, fail
from harness.gate import command as gate_command
from harness.progress import console
from harness.running import planning, runs
from harness.running.process import WorkerFailure
from harness.running.run_directory import Plan, RunDirectory, UnusableRun
from harness.suite import Suite
from harness.suite_file import load_suite
from harness.yaml_source import InvalidFile, Mistake
from implementations.registry import LOWER_BOUND

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(models.app)  # without a name: its commands stand beside those below
app.add_typer(reading.app)
app.add_typer(gate_command.app)
app.add_typer(inspection.app)


class Format(StrEnum):
    """Formats of `report`."""

    markdown = "markdown"
    csv = "csv"
    json = "json"
    html = "html"


def read_suite(path: Path, to_be_run: bool = False) -> Suite:
    """The suite, or the end of the command with every mistake in it."""
    try:
        return load_suite(path, to_be_run)
    except InvalidFile as error:
        _print_mistakes(error.mistakes)
        raise typer.Exit(USAGE) from error


def _print_mistakes(mistakes: Sequence[Mistake]) -> None:
    for mistake in mistakes:
        console.print(str(mistake), style="red", soft_wrap=True, markup=False)


@app.command()
def run(
    suite: Annotated[Path | None, typer.Argument(help="suite file; may be left out with --resume")] = None,
    only: Annotated[list[str] | None, typer.Option(help="measure only this implementation (repeatable)")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="leave this implementation out (repeatable)")] = None,
    where: Annotated[list[str] | None, typer.Option(help="only cases with KEY=VALUE[|VALUE...] (repeatable)")] = None,
    out: Annotated[Path | None, typer.Option(help="run directory to create; default runs/SUITE-TIME")] = None,
    resume: Annotated[Path | None, typer.Option(help="run directory to continue")] = None,
    budget: Annotated[
        float | None, typer.Option(min=1, help="seconds; after the first, no case begins that would not fit")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="commit to record where there is no .git")] = None,
    another_gpu: Annotated[bool, typer.Option("--another-gpu", help="resume on another device than before")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and stop")] = False,
) -> None:
    """Measures a suite and prints its tables."""
    runs.interrupted.clear()
    signal.signal(signal.SIGTERM, _interrupt)  # ends as Ctrl-C does, resumable
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # a shell's background job keeps ignoring Ctrl-C
        signal.signal(signal.SIGINT, _interrupt)
    directory = None
    try:
        if resume is None:
            plan, machine = _new_plan(suite, only or [], skip or [], where or [], measuring=not dry_run)
            directory = RunDirectory(out or planning.default_directory(plan.suite))
        else:
            if only or skip or where or out:
                fail("--resume continues what was planned: --only, --skip, --where and --out do not go with it")
            directory = RunDirectory(resume)
            plan, machine = _resumed_plan(directory, suite, another_gpu)
        if dry_run:
            _print_plan(plan, directory)
            return
        runs.check_options(plan, planning.scratch_log())
        if resume is None:
            directory.create(plan)
        left = runs.execute(directory, plan, machine, revision, budget)
    except (UnusableRun, selection.InvalidSelection, runs.InvalidOptions) as error:
        fail(str(error))
    except runs.UnfitEnvironment as error:
        fail(str(error), UNFIT)
    except KeyboardInterrupt:
        begun = directory is not None and directory.path.exists()
        how = f"continue with: {directory.resume_command}" if begun and directory else "nothing measured"
        fail(f"interrupted; {how}", INTERRUPTED)
    from harness.analysis.report import write_report  # noqa: PLC0415  (pandas is for reading only)

    typer.echo(write_report(directory.path).read_text(encoding="utf-8"), nl=False)
    console.print(f"records and report in {directory.path}", soft_wrap=True)
    if left:
        fail(f"the budget is spent; cases left: {len(left)}; continue with: {directory.resume_command}", INTERRUPTED)
    raise typer.Exit(runs.exit_code(directory.records()))


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    runs.interrupted.set()  # the exception is lost where it hits a destructor: the next case looks here
    raise KeyboardInterrupt


def _new_plan(
    path: Path | None, only: list[str], skip: list[str], where: list[str], measuring: bool = True
) -> tuple[Plan, dict[str, Any]]:
    """The plan, and the machine. Where nothing is to be measured, a suite for a GPU can be planned without one."""
    if path is None:
        fail("name a suite file, such as suites/quick.yaml, or continue a run with --resume DIR")
    suite = read_suite(path, to_be_run=measuring)
    rows = selection.implementations(suite, only, skip)
    condition = selection.condition(where)
    machine = runs.environment(planning.scratch_log())
    device = planning.device_for(suite, machine) if measuring or suite.device == "auto" else suite.device
    asked_where = f"--where {' --where '.join(where)}"
    return planning.new_plan(suite, rows, condition, machine, device, asked_where), machine


def _resumed_plan(directory: RunDirectory, path: Path | None, another_gpu: bool) -> tuple[Plan, dict[str, Any]]:
    plan = directory.plan()
    if path is not None and read_suite(path) != plan.suite:
        fail(f"{path} is not the suite that {directory.path} was started with; start a new run, or leave it out")
    machine = runs.environment(planning.scratch_log())
    if plan.device == "cuda" and not machine["cuda_available"]:
        raise runs.UnfitEnvironment(f"{directory.path} was measured on {plan.device_name}; torch sees no GPU here")
    name = runs.device_name(plan.device, machine)
    if name != plan.device_name and not another_gpu:
        raise runs.UnfitEnvironment(
            f"{directory.path} was measured on {plan.device_name}, this is {name}: their times do not belong in one "
            "table (--another-gpu resumes all the same)"
        )
    return plan, machine


def _print_plan(plan: Plan, directory: RunDirectory) -> None:
    done = {record.case_id for record in directory.records()}
    cases = [case for case in plan.cases() if case.id not in done]
    seconds = runs.estimates(plan, cases)
    rows = [(case.id, len(plan.implementations), f"{s:.0f}") for case, s in zip(cases, seconds, strict=True)]
    typer.echo(tabulate(rows, headers=["case", "implementations", "estimated s"], tablefmt="github"))
    typer.echo(f"\n{len(cases)} of {len(plan.cases())} cases left, about {sum(seconds) / 60:.1f} min")
    typer.echo(f"on {plan.device_name}, into {directory.path}")
    typer.echo(f"implementations: {', '.join(plan.implementations)}")


@app.command()
def report(
    run_directory: Annotated[Path, typer.Argument(help="a run directory, or its records.jsonl")],
    format: Annotated[Format, typer.Option(help="what to print")] = Format.markdown,
) -> None:
    """Prints a run's results; needs neither torch nor a GPU."""
    from harness.analysis.report import render  # noqa: PLC0415  (pandas is for reading only)

    try:
        typer.echo(render(run_directory, format.value))
    except (OSError, ValueError) as error:
        fail(str(error))


@app.command()
def validate(suites: Annotated[list[Path], typer.Argument(help="suite files")]) -> None:
    """Checks suite files and reports every mistake with its line; imports no torch."""
    mistakes: list[Mistake] = []
    for path in suites:
        try:
            suite = load_suite(path)
        except InvalidFile as error:
            mistakes += error.mistakes
            continue
        cases, on_cpu = len(suite.cases_on("cuda")), f", {len(suite.cases_on('cpu'))} on a CPU" if suite.on_cpu else ""
        typer.echo(f"{path}: ok; cases: {cases}{on_cpu}; implementations: {len(suite.implementations)}")
    _print_mistakes(mistakes)
    if mistakes:
        raise typer.Exit(USAGE)


@app.command(name="list")
def list_everything(
    suite: Annotated[Path | None, typer.Argument(help="list the cells of this suite instead")] = None,
) -> None:
    """Lists implementations (and why one is not available) and suites, or the cells of one suite."""
    log = planning.scratch_log()
    try:
        if suite is not None:
            plan, _machine = _new_plan(suite, [], [], [], measuring=False)
            rows = [(case.id, name, reason or "") for case, name, reason in runs.cells(plan, log)]
            typer.echo(tabulate(rows, headers=["case", "implementation", "not run because"], tablefmt="github"))
            return
        available = runs.available(log)
    except runs.UnfitEnvironment as error:
        fail(str(error), UNFIT)
    except WorkerFailure as failure:
        fail(f"the implementations could not be looked at: {failure.reason} (log: {log})", FAILED_CELL)
    known = [(LOWER_BOUND, "yes: computed, not run"), *((n, f"no: {r}" if r else "yes") for n, r in available.items())]
    typer.echo(tabulate(known, headers=["implementation", "available here"], tablefmt="github"))
    found = [(path, load_suite(path)) for path in sorted(Path("suites").glob("*.yaml"))]
    if not found:
        fail(f"no suites/*.yaml in {Path.cwd()}")
    typer.echo("\n" + tabulate([(p, s.description) for p, s in found], headers=["suite", ""], tablefmt="github"))


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point of `python -m harness` and of the `harness` script."""
    app(prog_name="python -m harness")
