"""Two runs: their times by how their ratios to the GEMM, or to the reference, of their own rounds stand to each other.

Milliseconds of two runs are never compared: identical GPUs differ by 8 %, and one GPU by as much from hour to hour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.analysis.statistics.bootstrap import Interval
from harness.analysis.statistics.rows import row_statistics
from harness.comparison.comparison import Comparison, NothingToCompare, Pair, code_of, compared, device_of
from harness.comparison.environment import unlike
from harness.comparison.policy import Policy
from harness.comparison.ratio import TimeRatio, is_timed, quotient, without_ratio
from harness.comparison.row import RowComparison
from harness.comparison.side import side_of
from harness.record import Record

Key = tuple[str, str]  # case_id, implementation


def compare_runs(
    base: Sequence[Record],
    head: Sequence[Record],
    policy: Policy,
    across: bool = False,
    pairs: Sequence[Pair] = (),
) -> Comparison:
    """Rows of the same name, or those of `pairs`. In unlike environments times are refused unless `across`.

    Raises NothingToCompare if the runs share no row.
    """
    different = unlike(base, head)
    refused = f"unlike environments: {'; '.join(different)}" if different and not across else None
    ratios = ratios_to_yardstick(base), ratios_to_yardstick(head)
    bases, heads = ({(r.case_id, r.implementation): r for r in side if not r.analytic} for side in (base, head))
    cases = {record.case_id: record.case for record in [*head, *base]}
    names = pairs or [(name, name) for name in dict.fromkeys(name for _, name in [*heads, *bases])]
    rows: list[RowComparison] = []
    for case in cases.values():
        for pair in names:
            keys = (case.id, pair[0]), (case.id, pair[1])
            before, after = bases.get(keys[0]), heads.get(keys[1])
            found = [record for record in (before, after) if record is not None]
            if found:
                ratio = _ratio(ratios[0].get(keys[0], {}), ratios[1].get(keys[1], {}), refused)
                ratio = ratio or without_ratio(is_timed(before), is_timed(after))
                ours, theirs = (None if record is None else side_of(record) for record in (before, after))
                device = found[0].provenance.device
                rows.append(compared(case, pair, ours, theirs, ratio, policy, device))
    if not any(row.base is not None and row.head is not None for row in rows):
        hint = f" ({'; '.join(different)})" if different else ""
        raise NothingToCompare(f"nothing to compare: the runs have no row in common{hint}")
    return Comparison(
        base=code_of(base),
        head=code_of(head),
        device=device_of([*base, *head]),
        policy=policy.name,
        rows=rows,
        unlike=different,
    )


def ratios_to_yardstick(records: Sequence[Record]) -> dict[Key, dict[str, Interval]]:
    """For each timed row its ratio to the GEMM and to the reference of the same rounds, where there is one."""
    return {
        (row.case_id, row.implementation): {
            yardstick: interval
            for yardstick, interval in (("GEMM", row.to_gemm), ("reference", row.to_reference))
            if interval is not None
        }
        for row in row_statistics(records)
    }


def _ratio(base: Mapping[str, Interval], head: Mapping[str, Interval], refused: str | None) -> TimeRatio | None:
    """By the first yardstick that both have; None if they have none in common."""
    for yardstick in base:
        if yardstick in head:
            return TimeRatio(None if refused else quotient(head[yardstick], base[yardstick]), False, refused)
    return None
