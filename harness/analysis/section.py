"""One setting's table in the paper's layout: a block per label smoothing, a row per implementation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tabulate import tabulate

from harness.analysis.agreement_table import agreement_details
from harness.analysis.footnotes import IN_THE_INTERPRETER, Footnotes, amortised, explanation, status_words
from harness.analysis.formats import (
    DASH,
    error,
    excesses,
    figures_table,
    interval,
    mib,
    ms,
    number,
    ratio,
    setting,
    share,
    three_places,
)
from harness.analysis.legend import IN_FORWARD, legend
from harness.analysis.memory_claims import Growth, claims_table
from harness.analysis.row import Row
from harness.analysis.rows import Rows
from harness.case import Case
from harness.record import COMPLETED, Record, Status

HEADERS = (
    "implementation",
    "fwd MiB",
    "fwd ms",
    "bwd MiB",
    "bwd ms",
    "fwd+bwd MiB",
    "fwd+bwd ms",
    "95 %",
    "time in GEMMs",
    "to reference",
    "of floor",
    "peak / floor",
    "dE error",
    "dC error",
    "dE / dC excess",
    "no-grad fwd ms",
    "status",
)


@dataclass(frozen=True)
class Best:
    """What is printed in bold: the fastest rows and the smallest peak among a block's ok rows, on a GPU."""

    fastest: frozenset[str]  # names: the shortest time, and what is not distinguishably slower
    fwd_bwd_peak_bytes: int | None


def by_setting(records: Sequence[Record]) -> dict[Case, list[Record]]:
    """Records by everything about their case but its label smoothing, in order of appearance."""
    settings: dict[Case, list[Record]] = {}
    for record in records:
        settings.setdefault(record.case.model_copy(update={"label_smoothing": 0.0}), []).append(record)
    return settings


def section(records: Sequence[Record], rows: Rows, fitted: Sequence[Growth] = ()) -> list[str]:
    """The lines of one setting: heading, table, what its marks mean. `rows` and `fitted` growth are the whole run's."""
    case, notes = records[0].case, Footnotes()
    table = tabulate(
        _body(records, rows, notes),
        headers=HEADERS,
        tablefmt="pipe",
        colalign=["left", *["right"] * (len(HEADERS) - 2), "left"],
        disable_numparse=True,
    )
    lines = [f"## {setting(case)}", "", table, "", *legend(records, rows), *notes.lines(), ""]
    return [*lines, *agreement_details(records), *claims_table(records, fitted), *_figures(records, rows)]


def _figures(records: Sequence[Record], all_rows: Rows) -> list[str]:
    """A table of what implementations say of themselves; nothing where none does."""
    rows = [row for row in map(all_rows.of, records) if row.figures]
    if not rows:
        return []
    names = list(dict.fromkeys(name for row in rows for name in row.figures))
    body = [
        [row.implementation, number(row.label_smoothing)]
        + [f"{row.figures[name]:.3g}" if name in row.figures else DASH for name in names]
        for row in rows
    ]
    headers = ["implementation", "β", *(name.replace("_", " ") for name in names)]
    table = figures_table(headers, body)
    return ["What the implementations say of themselves, not judged:", "", table, ""]


def _body(records: Sequence[Record], rows: Rows, notes: Footnotes) -> list[list[str]]:
    # the lower bound is the same for every label smoothing: once, on top of all blocks
    analytic = {record.implementation: record for record in reversed(records) if record.analytic}
    names = dict.fromkeys(record.implementation for record in records)
    body = [_cells(analytic[name], rows, Best(frozenset(), None), notes) for name in names if name in analytic]
    for smoothing in sorted({record.case.label_smoothing for record in records}, reverse=True):
        title = f"*Smoothing β > 0: β = {number(smoothing)}*" if smoothing else "*Smoothing β = 0*"
        block = {
            record.implementation: record
            for record in records
            if record.case.label_smoothing == smoothing and not record.analytic
        }
        if block:
            best = _best(list(block.values()), rows)
            body.append([title] + [""] * (len(HEADERS) - 1))
            body += [_cells(block[name], rows, best, notes) for name in names if name in block]
    return body


def _best(records: Sequence[Record], rows: Rows) -> Best:
    ok = [r for r in records if r.status is Status.OK and r.provenance.device != "cpu"]  # whose times are noise
    peaks = [peak for record in ok if (peak := rows.of(record).fwd_bwd_peak_bytes) is not None]
    return Best(frozenset(rows.fastest(ok)), min(peaks, default=None))


def _cells(record: Record, rows: Rows, best: Best, notes: Footnotes) -> list[str]:
    row = rows.of(record)
    ok = record.status is Status.OK and not record.analytic

    def time(text: str) -> str:
        return f"({text})" if record.status is not Status.OK and text != DASH else text

    peak, total = mib(row.fwd_bwd_peak_bytes), time(ms(row.fwd_bwd_ms))
    if ok and row.fwd_bwd_peak_bytes is not None and row.fwd_bwd_peak_bytes == best.fwd_bwd_peak_bytes:
        peak = f"**{peak}**"
    if ok and record.implementation in best.fastest:
        total = f"**{total}**"
    if record.interpreted and record.status in COMPLETED:
        total += f" {notes.mark(IN_THE_INTERPRETER)}"
    if record.amortised_ms and row.fwd_bwd_ms is not None:
        total += f" {notes.mark(amortised(record))}"
    words = explanation(record)
    status = "computed" if record.analytic else status_words(record.status)
    return [
        record.implementation.replace("|", r"\|") + (f" {IN_FORWARD}" if record.grads_in_forward else ""),
        mib(row.fwd_peak_bytes),
        time(ms(row.fwd_ms)),
        mib(row.bwd_peak_bytes),
        time(ms(row.bwd_ms)),
        peak,
        total,
        time(interval(row.fwd_bwd_ms_low, row.fwd_bwd_ms_high, ms)),
        time(ratio(row.fwd_bwd_gemms)),
        time(_to_reference(row)),
        time(share(row.fwd_bwd_floor_share)),
        ratio(row.fwd_bwd_peak_to_floor),
        error(row.grad_input_error),
        error(row.grad_weight_error),
        excesses(row.grad_input_excess, row.grad_weight_excess),
        time(ms(row.fwd_no_grad_ms)),
        f"{status} {notes.mark(words)}" if words else status,
    ]


def _to_reference(row: Row) -> str:
    if row.implementation == row.reference and row.samples:
        return "1"
    if row.fwd_bwd_to_reference is None:
        return DASH
    ends = interval(row.fwd_bwd_to_reference_low, row.fwd_bwd_to_reference_high, three_places)
    return f"{three_places(row.fwd_bwd_to_reference)} [{ends}]"
