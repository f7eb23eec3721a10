"""What other projects call, from `harness` itself: measure a suite inside their own tests, and read what was measured.

These names, their arguments and what they return stay as they are from one minor version to the next; what must
change is announced in CHANGELOG.md and goes on working, with a DeprecationWarning, for one minor version.
docs/library.md has examples.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import selection
from harness.case import Case, Device
from harness.record import Record
from harness.running import planning, runs
from harness.running.run_directory import RunDirectory
from harness.suite import Suite
from harness.suite_file import load_suite, suite_of
from harness.yaml_source import in_memory

if TYPE_CHECKING:
    import pandas as pd  # for reading only: whoever measures and looks at records does not wait for it

    from harness.comparison.comparison import Comparison

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Run:
    """A run that is over, with all of its records: one per case and implementation, in the order of the suite."""

    path: Path  # the run directory; what `python -m harness report` and `load_records` take
    records: tuple[Record, ...] = field(repr=False)  # with their samples, nothing to print
    left: tuple[Case, ...] = ()  # cases that were not begun for want of budget

    @property
    def unexpected(self) -> tuple[Record, ...]:
        """Records that fail a run: not ok although offered and installed, and not foreseen by the suite."""
        return tuple(record for record in self.records if not record.as_expected)

    def frame(self) -> pd.DataFrame:
        """The records with their medians, intervals and ratios; see `to_frame`."""
        return to_frame(self.records)

    def report(self) -> str:
        """The report in markdown, as `python -m harness report` prints it."""
        from harness.analysis.report import render  # noqa: PLC0415

        return render(self.path, "markdown")


def run_suite(
    suite: StrPath | Mapping[str, Any],
    *,
    only: str | Sequence[str] = (),
    skip: str | Sequence[str] = (),
    where: Mapping[str, Any] | None = None,
    out: StrPath | None = None,
    device: Device | None = None,
    budget_s: float | None = None,
) -> Run:
    """Measures a suite and returns when that is done: what `python -m harness run` does, without its printing.

    suite: a suite file, or a mapping with the keys of one (docs/suites.md).
    only, skip: names of implementations to keep, to leave out.
    where: keep the cases that match every key: `{"tokens": [4096, 8192], "softcap": None}`.
    out: the run directory to create; without it `runs/NAME-TIME` below the current directory.
    device: "cuda" or "cpu", one that the suite may run on; without it the suite's choice.
    budget_s: seconds, more than 0; after the first, no case begins that would not fit. What is left is in `Run.left`,
        and `python -m harness run --resume` measures it.

    Implementations run in processes of their own, with the Python and the environment variables of this one:
    `path: pkg.mod:obj` is looked up in the current directory, in PYTHONPATH and among what is installed, whatever
    sys.path holds here.
    A failure of one is a record with its status, no exception. Progress goes to stderr.

    Raises InvalidFile and InvalidSelection, both ValueErrors, for a wrong suite and for arguments that select nothing;
    InvalidOptions for options that an implementation refuses; UnusableRun if `out` holds a run already;
    UnfitEnvironment if this machine cannot measure the suite.
    """
    if budget_s is not None and not budget_s > 0:
        raise selection.InvalidSelection(f"budget_s must be more than 0 seconds, given {budget_s}")
    read = _read(suite)
    rows = selection.implementations(read, _names(only), _names(skip), prefix="")
    condition = selection.matching(where or {})
    machine = runs.environment(planning.scratch_log())
    plan = planning.new_plan(
        read, rows, condition, machine, planning.device_for(read, machine, device), f"where={dict(where or {})}"
    )
    runs.check_options(plan, planning.scratch_log())
    directory = RunDirectory(Path(out) if out is not None else planning.default_directory(read))
    directory.create(plan)
    caller = [Path(sys.argv[0]).name, *sys.argv[1:]]
    left = runs.execute(directory, plan, machine, revision=None, budget_s=budget_s, argv=caller)
    return Run(directory.path, tuple(directory.records()), tuple(left))


def load_records(run: StrPath) -> list[Record]:
    """The records of a run directory or of one records.jsonl, in the order of the file; needs neither torch nor a GPU.

    Raises FileNotFoundError naming what is missing, and InvalidFile, a ValueError, for lines that are no records.
    """
    from harness.analysis.frame import read_records  # noqa: PLC0415

    return read_records(Path(run))


def to_frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row per record, columns as in docs/reading-results.md: medians, 95 % intervals, paired ratios, bytes, errors.

    Ratios are to the reference's record of the same case: hand over whole cases.
    """
    from harness.analysis.frame import to_frame as build  # noqa: PLC0415

    return build(records)


def compare(
    base: StrPath,
    head: StrPath | None = None,
    *,
    rows: Sequence[tuple[str, str]] = (),
    across: bool = False,
    policy: StrPath | None = None,
) -> Comparison:
    """What changed from base to head, and whether that is a regression: what `python -m harness compare` does.

    base, head: run directories or files of records; without head, rows of base.
    rows: names to compare, (base's, head's) each; without it rows of the same name, or `NAME@base` with `NAME@head`.
    across: compare times of unlike environments too, which are refused otherwise.
    policy: a policy file (docs/gating.md); without it the default margins.

    `exit_code` is the verdict: 5 unfit, 4 a failed cell, 3 wrong gradients, 1 a regression, 6 inconclusive, 0 none of
    them; `markdown()` is the table.

    Raises FileNotFoundError naming what is missing, and ValueErrors: InvalidFile for records or a policy that are none,
    InvalidSelection for `rows` that are no pairs, NothingToCompare for names that a run has not and where the two share
    no row.
    """
    from harness.comparison.runs import compare_paths  # noqa: PLC0415

    wrong = [rows] if isinstance(rows, str) else [pair for pair in rows if isinstance(pair, str) or len(pair) != 2]
    if wrong:
        raise selection.InvalidSelection(f"rows must be pairs of names, (base's, head's) each, given {wrong[0]!r}")
    other, rules = (None if path is None else Path(path) for path in (head, policy))
    return compare_paths(Path(base), other, list(rows), across, rules)


def _read(suite: StrPath | Mapping[str, Any]) -> Suite:
    if isinstance(suite, Mapping):
        return suite_of(in_memory("suite", suite), to_be_run=True)
    return load_suite(Path(suite), to_be_run=True)


def _names(given: str | Sequence[str]) -> Sequence[str]:
    return [given] if isinstance(given, str) else given
