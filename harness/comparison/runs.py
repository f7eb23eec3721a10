"""Two runs on disk, or rows of one, by a policy file: what the command `compare` and `harness.compare` share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.analysis.frame import read_records
from harness.comparison.across import compare_runs
from harness.comparison.comparison import BASE, HEAD, Comparison, NothingToCompare, Pair
from harness.comparison.policy_file import load_policy
from harness.comparison.within import compare_within, pairs_of_trees
from harness.record import Record
from harness.yaml_source import nearest

AGAIN = "again"  # inside a gate's run directory: rows measured a second time, with new processes


def compare_paths(
    base: Path, head: Path | None, pairs: Sequence[Pair], across: bool, policy: Path | None
) -> Comparison:
    """head None: rows of base, by default every `NAME@base` with its `NAME@head`.

    Raises OSError for files that cannot be read, ValueError for records, a policy or names that are wrong.
    """
    records, rules = read_records(base), load_policy(policy)
    if head is not None:
        others = read_records(head)
        _check(pairs, (base, records), (head, others))
        return compare_runs(records, others, rules, across, pairs)
    _check(pairs, (base, records), (base, records))
    pairs = pairs or pairs_of_trees(records)
    if not pairs:
        raise NothingToCompare(
            f"nothing to compare {base} with: give a second run, or two of its rows (--rows BASE=HEAD); without either "
            f"it would need rows NAME{BASE} and NAME{HEAD}, as `harness gate --pair` makes them"
        )
    again = read_records(base / AGAIN) if (base / AGAIN).is_dir() else []
    return compare_within(records, pairs, rules, again)


def _check(pairs: Sequence[Pair], *sides: tuple[Path, Sequence[Record]]) -> None:
    """Raises NothingToCompare for a name that its run has no row of: beside rows that it has, it would be `gone`."""
    for pair in pairs:
        for name, (run, records) in zip(pair, sides, strict=True):
            names = list(dict.fromkeys(record.implementation for record in records))
            if name not in names:
                raise NothingToCompare(
                    f"nothing to compare: {run} has no row '{name}'{nearest(name, names)} (it has: {', '.join(names)})"
                )
