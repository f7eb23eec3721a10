"""The commands that compare and gate. Their exit code is the verdict."""

from __future__ import annotations

import datetime
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from harness import selection
from harness.exits import INTERRUPTED, UNFIT, fail
from harness.progress import console
from harness.running import runs
from harness.running.run_directory import RunDirectory, UnusableRun
from harness.suite import Suite, Where
from harness.suite_file import load_suite

if TYPE_CHECKING:
    from harness.comparison.policy import Policy

SUMMARY = "GITHUB_STEP_SUMMARY"  # a file that GitHub shows beside the job

app = typer.Typer()

PolicyFile = Annotated[Path | None, typer.Option(help="policy file; default: what policies/default.yaml says")]


@app.command()
def compare(
    base: Annotated[Path, typer.Argument(help="a run directory, or its records.jsonl")],
    head: Annotated[Path | None, typer.Argument(help="another; left out, rows of the first are compared")] = None,
    rows: Annotated[
        list[str] | None, typer.Option(help="BASE=HEAD, names of rows to compare (repeatable); default: equal names")
    ] = None,
    across: Annotated[bool, typer.Option("--across", help="compare times of unlike environments too")] = False,
    policy: PolicyFile = None,
) -> None:
    """Compares two runs, or rows of one, and prints a markdown table; needs neither torch nor a GPU."""
    from harness.comparison.runs import compare_paths  # noqa: PLC0415  (pandas is for reading only)
    from harness.comparison.table import markdown  # noqa: PLC0415

    try:
        found = compare_paths(base, head, [_row_pair(text) for text in rows or []], across, policy)
    except (OSError, ValueError) as error:
        fail(str(error))
    typer.echo(markdown(found))
    raise typer.Exit(found.exit_code)


@app.command()
def gate(
    target: Annotated[Path, typer.Argument(help="with --pair a suite file, with --baseline a run directory")],
    pair: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="base=REF head=REF", help="measure both side by side; REF: a commit or a directory"),
    ] = None,
    baseline: Annotated[Path | None, typer.Option(help="hold the run to the ratios stored in this file")] = None,
    update_baseline: Annotated[
        bool, typer.Option("--update-baseline", help="write the run into the baseline file instead")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="a baseline of another GPU or other versions decides too")
    ] = False,
    policy: PolicyFile = None,
    only: Annotated[list[str] | None, typer.Option(help="measure only this implementation (repeatable)")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="leave this implementation out (repeatable)")] = None,
    where: Annotated[list[str] | None, typer.Option(help="only cases with KEY=VALUE[|VALUE...] (repeatable)")] = None,
    budget: Annotated[
        float | None, typer.Option(min=1, help="seconds for rounds while UNSURE, all cases; default: the suite's")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="run directory to create; default runs/gate-SUITE-TIME")] = None,
    share_environment: Annotated[
        bool, typer.Option("--share-environment", help="install nothing: both trees use the running interpreter")
    ] = False,
    trees: Annotated[Path | None, typer.Option(help="keep checked out commits and their environments here")] = None,
) -> None:
    """Fails if head is slower, hungrier or less accurate than base, or no longer ok."""
    if (pair is None) == (baseline is None):
        fail("say what to hold it to: --pair base=REF head=. SUITE, or RUN --baseline FILE")
    if baseline is not None:
        options = {"only": only, "skip": skip, "where": where, "budget": budget, "out": out, "trees": trees}
        measuring = [f"--{name}" for name, value in options.items() if value]
        measuring += ["--share-environment"] if share_environment else []
        if measuring:
            fail(f"{', '.join(measuring)}: goes with --pair; with --baseline nothing is measured")
        if update_baseline and (strict or policy is not None):
            fail("--update-baseline writes and compares nothing: without --strict and --policy")
        _gate_by_baseline(target, baseline, update_baseline, strict, policy)
    if update_baseline or strict:
        fail("--update-baseline and --strict go with --baseline")
    from harness.comparison.table import markdown  # noqa: PLC0415
    from harness.gate.checkout import trees as checked_out  # noqa: PLC0415
    from harness.gate.pair_gate import PairGate  # noqa: PLC0415
    from harness.gate.tree import UnusableTree  # noqa: PLC0415

    found, directory, name = None, None, ""
    try:
        base, head = _refs(pair or ("", ""))
        suite = load_suite(target, to_be_run=True)
        name = suite.name
        rows = selection.implementations(suite, only or [], skip or [])
        chosen = selection.condition(where or [])
        rules = _policy_for(policy, suite, chosen)
        directory = _new_directory(out or Path("runs") / f"gate-{name}-{_time()}")
        with (
            _interruptible(),
            tempfile.TemporaryDirectory(prefix="harness-gate-") as scratch,
            checked_out(base, head, Path(scratch), share_environment, trees) as (base_tree, head_tree),
        ):
            found = PairGate(suite, rows, chosen, base_tree, head_tree, rules, directory, budget).run()
    except (runs.UnfitEnvironment, UnusableTree) as error:
        fail(str(error), UNFIT)
    except KeyboardInterrupt:
        fail("interrupted; a gate begins anew: its rounds belong together", INTERRUPTED)
    except (OSError, ValueError) as error:
        fail(str(error))
    _finish(markdown(found, f"Gate of {name}"), directory.path)
    raise typer.Exit(found.exit_code)


@app.command(name="policy")
def show_policy(
    file: Annotated[Path, typer.Argument(help="policy file")],
    suite: Annotated[Path | None, typer.Argument(help="suite whose rows and cases it is for")] = None,
) -> None:
    """Checks a policy file and, with a suite, prints what each row is held to; imports no torch."""
    from harness.comparison.policy_file import load_policy  # noqa: PLC0415  (tabulate is for reading only)
    from harness.comparison.table import margins_table  # noqa: PLC0415

    try:
        if suite is None:
            typer.echo(f"{file}: ok; rules: {len(load_policy(file).rules)}")
            return
        rows = load_suite(suite)
        rules = _policy_for(file, rows, Where())
        cases = [case for device in rows.devices for case in rows.cases_on(device)]
        typer.echo(margins_table(rules, [row.name for row in rows.implementations], cases))
    except ValueError as error:
        fail(str(error))


def _gate_by_baseline(run: Path, file: Path, update: bool, strict: bool, policy: Path | None) -> NoReturn:
    from harness.analysis.frame import read_records  # noqa: PLC0415
    from harness.comparison.policy_file import load_policy  # noqa: PLC0415
    from harness.comparison.table import markdown  # noqa: PLC0415
    from harness.gate.baseline import Baseline, compare_with, load_baseline, updated, write_baseline  # noqa: PLC0415

    try:
        records = read_records(run)
        stored = load_baseline(file) if file.exists() or not update else Baseline()
        if update:
            write_baseline(file, updated(stored, records))
            console.print(f"{file}: written; look at the diff before you commit it", soft_wrap=True)
            raise typer.Exit(0)
        found = compare_with(stored, records, load_policy(policy), strict)
    except (OSError, ValueError) as error:
        fail(str(error))
    _finish(markdown(found, f"Gate of {records[0].suite} by {file}"), None)
    raise typer.Exit(found.exit_code)


def _policy_for(path: Path | None, suite: Suite, where: Where) -> Policy:
    """The policy; a rule that speaks of no row or case of the suite is a mistake. Raises InvalidFile."""
    from harness.comparison.policy_file import load_policy  # noqa: PLC0415

    every = [row.name for row in suite.implementations]
    cases = [case for device in suite.devices for case in suite.cases_on(device)]
    if not any(where.matches(case) for case in cases):
        raise selection.InvalidSelection(f"--where leaves no case of suite '{suite.name}'")
    return load_policy(path, every, cases)


def _finish(text: str, directory: Path | None) -> None:
    """Prints the table, and leaves it where the records are and where GitHub shows it.

    A summary that cannot be written is said and changes no verdict: the table is out by then.
    """
    typer.echo(text)
    if directory is not None:
        (directory / "gate.md").write_text(text + "\n", encoding="utf-8")
        console.print(f"records and gate.md in {directory}", soft_wrap=True)
    if summary := os.environ.get(SUMMARY):
        try:
            with Path(summary).open("a", encoding="utf-8") as file:
                file.write(text + "\n")
        except OSError as error:
            console.print(f"warning: {SUMMARY}={summary}: not written: {error.strerror}", soft_wrap=True, markup=False)


def _refs(pair: tuple[str, str]) -> tuple[str, str]:
    """What base and head name, given in either order. Raises ValueError."""
    given = dict(part.partition("=")[::2] for part in pair)
    if set(given) != {"base", "head"} or not all(given.values()):
        raise ValueError(f"--pair must be base=REF head=REF, a commit or a directory each, given {' '.join(pair)}")
    return given["base"], given["head"]


def _row_pair(text: str) -> tuple[str, str]:
    base, separator, head = text.partition("=")
    if not (base and separator and head):
        raise ValueError(f"--rows {text}: must be BASE=HEAD, names of two rows")
    return base, head


def _new_directory(path: Path) -> RunDirectory:
    directory = RunDirectory(path)
    if directory.records_path.exists():
        raise UnusableRun(f"{path} holds a run already; give another --out")
    path.mkdir(parents=True, exist_ok=True)
    return directory


def _time() -> str:
    return f"{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}"


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends a gate as Ctrl-C does, with its workers and worktrees."""
    runs.interrupted.clear()

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        runs.interrupted.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
