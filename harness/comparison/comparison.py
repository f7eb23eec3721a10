"""All rows of base and head, with what is to be known beside them, and the exit code that it comes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harness.analysis.formats import number, setting
from harness.analysis.statistics.bootstrap import Interval
from harness.case import Case
from harness.comparison.policy import Policy
from harness.comparison.ratio import TimeRatio
from harness.comparison.row import Fault, RowComparison, compare_row
from harness.comparison.side import Side
from harness.exits import DISAGREES, FAILED_CELL, INCONCLUSIVE, REGRESSION, UNFIT
from harness.record import COMPLETED, Record

ORDER = (UNFIT, FAILED_CELL, DISAGREES, REGRESSION, INCONCLUSIVE)  # which exit code speaks where several could
BASE, HEAD = "@base", "@head"  # ends of the names of a row that a run has of two trees (`harness.gate`)

Pair = tuple[str, str]  # names of rows: base, head


class NothingToCompare(ValueError):
    """The records given share nothing; one clear sentence."""


@dataclass(frozen=True)
class Comparison:
    """Base against head."""

    base: str  # what they are, in words
    head: str
    device: str
    policy: str
    rows: Sequence[RowComparison]
    unlike: Sequence[str] = ()  # in what their environments differ
    controls: Mapping[str, Interval] = field(default_factory=dict)  # by case: two workers of the same code, an A/A
    advisory: str | None = None  # why faults of head against base do not decide; None: they do

    @property
    def faults(self) -> list[tuple[Fault, RowComparison]]:
        """Of all rows, each with its row; the one that decides comes first."""
        found = [(fault, row) for row in self.rows for fault in row.faults]
        return sorted(found, key=lambda pair: ORDER.index(pair[0].code))

    @property
    def blind(self) -> bool:
        """Whether base has rows and both sides completed none of them: where base failed, head is not its equal."""
        sides = [(row.base, row.head) for row in self.rows if row.base is not None]
        return bool(sides) and not any(
            head is not None and {base.status, head.status} <= COMPLETED for base, head in sides
        )

    @property
    def exit_code(self) -> int:
        """That of the first fault in the order 5, 4, 3, 1, 6; 6 too where nothing could be compared; else 0.

        An advisory comparison fails only for what head answers for alone: cells that failed or disagree.
        """
        codes = [fault.code for fault, _ in self.faults] + ([INCONCLUSIVE] if self.blind else [])
        if self.advisory is not None:
            codes = [code for code in codes if code in (FAILED_CELL, DISAGREES)]
        return codes[0] if codes else 0

    def markdown(self) -> str:
        """The table with its verdicts, as `python -m harness compare` prints it."""
        from harness.comparison.table import markdown  # noqa: PLC0415  (which reads comparisons)

        return markdown(self)


def compared(
    case: Case,
    pair: Pair,
    base: Side | None,
    head: Side | None,
    ratio: TimeRatio | None,
    policy: Policy,
    device: str,
) -> RowComparison:
    """The rows that `pair` names, held to what the policy says of head's."""
    words = f"{setting(case)}, β = {number(case.label_smoothing)}"
    margins = policy.margins(pair[1].removesuffix(HEAD), case)
    return compare_row(case.id, words, shared_name(pair), base, head, ratio, margins, device, of_trees(pair))


def of_trees(pair: Pair) -> bool:
    """Whether a gate measured it: one row, of two trees."""
    base, head = pair
    return base.endswith(BASE) and base.removesuffix(BASE) + HEAD == head


def shared_name(pair: Pair) -> str:
    """What both rows are called: `ours` of `ours@base` and `ours@head`, `ours / baseline` of others (head first)."""
    base, head = pair
    if base == head or of_trees(pair):
        return head.removesuffix(HEAD)
    return f"{head} / {base}"


def code_of(records: Sequence[Record]) -> str:
    """Every commit that the records name."""
    return " and ".join(dict.fromkeys(record.provenance.code for record in records))


def device_of(records: Sequence[Record]) -> str:
    """Every device that the records name."""
    return " and ".join(dict.fromkeys(record.provenance.device_name for record in records))
