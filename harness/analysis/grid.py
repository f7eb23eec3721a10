"""Tables with a case per row and an implementation per column: agreement-only runs, the overview of long reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tabulate import tabulate

from harness.analysis.footnotes import Footnotes, explanation, status_words
from harness.analysis.formats import DASH, excesses, inputs, number, ratio, shape
from harness.analysis.heading import tally
from harness.analysis.row import to_row
from harness.analysis.rows import Rows
from harness.case import Case
from harness.record import NOT_RUN, Record, Status

Cell = Callable[[Record, Mapping[str, Record]], str]  # a record, and its case's records by implementation

_AXES: dict[str, Callable[[Case], str]] = {
    "dtype": lambda case: case.dtype,
    "inputs": inputs,
    "β": lambda case: number(case.label_smoothing),
    "softcap": lambda case: DASH if case.softcap is None else number(case.softcap),
    "ignored": lambda case: f"{case.ignored_fraction:.3g}",
    "reduction": lambda case: case.reduction,
    "bias": lambda case: "yes" if case.linear_bias else "no",
    "seed": lambda case: str(case.seed),
}


def is_agreement_only(records: Sequence[Record]) -> bool:
    """Whether nothing of the run was timed and no memory measured, but something was compared."""
    measured = [record for record in records if not record.analytic]
    costs = any(record.memory or record.gemm_ms or (record.times and record.times.fwd_bwd_ms) for record in measured)
    return not costs and any(record.agreement for record in measured)


def agreement_tables(records: Sequence[Record]) -> list[str]:
    """The compact layout: a table per dtype and inputs, each cell the excesses of dE and dC, or the status."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if not record.analytic:
            groups.setdefault((record.case.dtype, inputs(record.case)), []).append(record)
    lines: list[str] = []
    for (dtype, drawn), group in groups.items():
        notes = Footnotes()

        def cell(record: Record, _: Mapping[str, Record], notes: Footnotes = notes) -> str:
            return _agreement(record, notes)

        limits = " or ".join(dict.fromkeys(number(record.max_excess) for record in group))
        lines += [f"## {dtype}, {drawn}", "", case_table(group, cell), ""]
        lines += [f"{tally(group)}. A cell is the excess of dE / of dC; both must be ≤ {limits}."]
        interpreted = dict.fromkeys(r.implementation for r in group if r.interpreted and r.status not in NOT_RUN)
        if interpreted:
            lines += ["", f"In the Triton interpreter: {', '.join(interpreted)}."]
        lines += ["", *notes.lines(), ""]
    return lines


def summary_table(records: Sequence[Record], rows: Rows) -> str:
    """fwd+bwd time in GEMMs, a case per row; the fastest ok rows in bold, one that is not ok in parentheses."""

    def cell(record: Record, others: Mapping[str, Record]) -> str:
        return _time_in_gemms(record, others, rows)

    return case_table([record for record in records if not record.analytic], cell)


def case_table(records: Sequence[Record], cell: Cell) -> str:
    """A markdown table of `cell`s: a case per row, named by the axes that vary, and an implementation per column."""
    names = list(dict.fromkeys(record.implementation for record in records))
    cases = {record.case_id: record.case for record in records}
    axes = {name: of for name, of in _AXES.items() if len({of(case) for case in cases.values()}) > 1}
    by_case: dict[str, dict[str, Record]] = {case_id: {} for case_id in cases}
    for record in records:
        by_case[record.case_id][record.implementation] = record
    body = [
        [shape(case), *(of(case) for of in axes.values())]
        + [cell(by_case[case_id][name], by_case[case_id]) if name in by_case[case_id] else "" for name in names]
        for case_id, case in cases.items()
    ]
    headers = ["N x D x V", *axes, *names]
    alignment = ["left"] * (1 + len(axes)) + ["right"] * len(names)
    return tabulate(body, headers=headers, tablefmt="pipe", colalign=alignment, disable_numparse=True)


def _agreement(record: Record, notes: Footnotes) -> str:
    row = to_row(record)
    values = excesses(row.grad_input_excess, row.grad_weight_excess)
    words = explanation(record)
    mark = f" {notes.mark(words)}" if words else ""
    if record.status is Status.OK:
        return (values if values != DASH else "ok") + mark  # no excess: the true gradients are zero, and so are these
    return status_words(record.status) + (f" ({values})" if values != DASH else "") + mark


def _time_in_gemms(record: Record, others: Mapping[str, Record], rows: Rows) -> str:
    value = rows.of(record).fwd_bwd_gemms
    if value is None:
        return DASH if record.status in NOT_RUN | {Status.OK} else status_words(record.status)
    if record.status is not Status.OK:
        return f"({ratio(value)})"
    rivals = [other for other in others.values() if other.status is Status.OK]
    return f"**{ratio(value)}**" if record.implementation in rows.fastest(rivals) else ratio(value)
