"""Two sets of rows of one run: their times by the ratios of common rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from harness.analysis.statistics.bootstrap import Interval
from harness.comparison.comparison import BASE, HEAD, Comparison, NothingToCompare, Pair, code_of, compared, device_of
from harness.comparison.environment import unlike
from harness.comparison.policy import Policy
from harness.comparison.ratio import TimeRatio, control_of, paired_ratio
from harness.comparison.row import RowComparison
from harness.comparison.side import side_of
from harness.record import Record


def pairs_of_trees(records: Sequence[Record]) -> list[Pair]:
    """Every `NAME@base` with its `NAME@head`, also where a run has but one of them."""
    stems = [
        record.implementation.removesuffix(end)
        for record in records
        for end in (BASE, HEAD)
        if record.implementation.endswith(end)
    ]
    return [(stem + BASE, stem + HEAD) for stem in dict.fromkeys(stems)]


def compare_within(
    records: Sequence[Record],
    pairs: Sequence[Pair],
    policy: Policy,
    again: Sequence[Record] = (),
    also_new: bool = False,
) -> Comparison:
    """The pairs of one run; `again` has rows that were measured a second time, with new processes.

    Raises NothingToCompare if no case has a row of either side; with `also_new` head alone will do.
    """
    by_key, by_key_again = ({(r.case_id, r.implementation): r for r in found} for found in (records, again))
    rows: list[RowComparison] = []
    controls: dict[str, Interval] = {}
    sides: tuple[list[Record], list[Record]] = ([], [])
    for case in {record.case_id: record.case for record in records}.values():
        for pair in pairs:
            base, head = (by_key.get((case.id, name)) for name in pair)
            found = [record for record in (base, head) if record is not None]
            if not found:
                continue
            ratio = _ratio(base, head, records)
            second = _ratio(by_key_again.get((case.id, pair[0])), by_key_again.get((case.id, pair[1])), again)
            if ratio is not None and ratio.control is not None:
                controls[case.id] = ratio.control
            if ratio is not None and second is not None:
                ratio = replace(ratio, again=second)
            ours, theirs = (None if record is None else side_of(record) for record in (base, head))
            device = found[0].provenance.device
            rows.append(compared(case, pair, ours, theirs, ratio, policy, device))
            for records_of_side, record in zip(sides, (base, head), strict=True):
                records_of_side.extend([record] if record is not None else [])
    if not (sides[1] if also_new else all(sides)):
        wanted = ", ".join(" and ".join(pair) for pair in pairs) or f"rows NAME{BASE} and NAME{HEAD}"
        raise NothingToCompare(f"nothing to compare: the run has not {wanted}")
    return Comparison(
        base=code_of(sides[0]),
        head=code_of(sides[1]),
        device=device_of([*sides[0], *sides[1]]),
        policy=policy.name,
        rows=rows,
        unlike=unlike(*sides),
        controls=controls,
    )


def _ratio(base: Record | None, head: Record | None, records: Sequence[Record]) -> TimeRatio | None:
    return None if base is None or head is None else paired_ratio(base, head, _control(base, records))


def _control(record: Record, records: Sequence[Record]) -> Interval | None:
    """The A/A of the rounds that `record` played, of whichever row had it."""
    for other in records:
        if other.case_id == record.case_id and other.again is not None and other.gemm_ms == record.gemm_ms:
            return control_of(other)
    return None
