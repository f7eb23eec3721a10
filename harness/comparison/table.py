"""A comparison in markdown: the verdict first, then every fault, then a line for each row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tabulate import tabulate

from harness.analysis.footnotes import plain, shortened, status_words
from harness.analysis.formats import DASH, mib, ratio, three_places
from harness.case import Case
from harness.comparison.comparison import Comparison
from harness.comparison.policy import Margins, Policy
from harness.comparison.row import Change, RowComparison
from harness.comparison.side import MEMORY_COLUMNS, memory_words
from harness.exits import DISAGREES, FAILED_CELL, INCONCLUSIVE, REGRESSION, UNFIT

WORDS = {
    0: "no regression",
    REGRESSION: "REGRESSION",
    DISAGREES: "AN IMPLEMENTATION DISAGREES",
    FAILED_CELL: "A CELL FAILED",
    UNFIT: "THIS MACHINE CANNOT TELL",
    INCONCLUSIVE: "INCONCLUSIVE",
}
_HEADERS = ["row", "time: head / base", "95 % interval", "verdict", "peak MiB", "bytes", "dE, dC excess", "status"]
_ALIGN = ["left", "right", "right", "left", "right", "right", "right", "left"]


def markdown(comparison: Comparison, title: str = "Head against base") -> str:
    """The whole of it, without a newline at its end."""
    code = comparison.exit_code
    lines = [f"## {title}: {WORDS[code]} (exit {code})", ""]
    lines += [f"- base: {plain(comparison.base)}", f"- head: {plain(comparison.head)}"]
    lines.append(f"- on {comparison.device}, policy {comparison.policy}")
    if comparison.advisory is not None:
        lines.append(f"- advisory only, what differs from base fails nothing: {comparison.advisory}")
    lines += [f"- environments differ: {plain(difference)}" for difference in comparison.unlike]
    faults = list(_faults(comparison))
    return "\n".join([*lines, "", *([*faults, ""] if faults else []), _table(comparison), "", _legend(comparison)])


def margins_table(policy: Policy, names: Sequence[str], cases: Sequence[Case]) -> str:
    """What a policy holds each row on each case to; cases that are held to the same share a line."""
    lines: dict[tuple[str, ...], int] = {}
    for name in names:
        for case in cases:
            margins = policy.margins(name, case).model_dump()
            key = (name, *(", ".join(value) if isinstance(value, list) else str(value) for value in margins.values()))
            lines[key] = lines.get(key, 0) + 1
    body = [[name, str(count), *values] for (name, *values), count in lines.items()]
    return tabulate(body, headers=["row", "cases", *Margins.model_fields], tablefmt="pipe", disable_numparse=True)


def _faults(comparison: Comparison) -> Iterator[str]:
    several = len({row.case_id for row in comparison.rows}) > 1
    for fault, row in comparison.faults:
        where = f", on {row.setting}" if several else ""
        yield f"- **{plain(shortened(fault.words))}**{where} (exit {fault.code})"
    if comparison.blind:
        yield f"- **no row was measured in both base and head: nothing was compared** (exit {INCONCLUSIVE})"
        for row in comparison.rows:
            if row.base is not None and row.base.reason is not None:
                yield f"- `{row.name}` of base{f', on {row.setting}' if several else ''}: {plain(row.base.reason)}"


def _table(comparison: Comparison) -> str:
    body: list[list[str]] = []
    last = None
    for row in sorted(comparison.rows, key=lambda row: row.setting):
        if row.setting != last:
            body.append([f"*{row.setting}*{_control(comparison, row.case_id)}", *[""] * 7])
            last = row.setting
        body.append(_line(row))
    return tabulate(body, headers=_HEADERS, tablefmt="pipe", colalign=_ALIGN, disable_numparse=True)


def _line(row: RowComparison) -> list[str]:
    interval = row.time.interval if row.time is not None else None
    time = DASH if interval is None else three_places(interval.estimate)
    ends = DASH if interval is None else f"{three_places(interval.low)} to {three_places(interval.high)}"
    if interval is not None and row.time is not None and row.time.paired:
        ends += f" ({interval.rounds} rounds)"
    if row.time is not None and row.time.again is not None and row.time.again.interval is not None:
        again = row.time.again.interval
        time, ends = (
            f"{time}, {three_places(again.estimate)}",
            f"{ends}, {three_places(again.low)} to {three_places(again.high)}",
        )
    return [row.name, time, ends, _verdict(row), *_memory(row), _excess(row), _status(row)]


def _verdict(row: RowComparison) -> str:
    if row.time is not None and row.time.refused is not None:
        return "not compared"
    if row.time_verdict is None:
        return DASH
    word = row.time_verdict.value.upper()
    return word if row.time_gated else f"({word})"


def _memory(row: RowComparison) -> tuple[str, str]:
    peak = MEMORY_COLUMNS[0]
    if row.base is None or row.head is None or row.memory is None:
        side = row.head or row.base
        return mib(side.memory.get(peak) if side is not None else None), DASH
    before, after = row.base.memory, row.head.memory
    grown = {name: after[name] - before[name] for name in MEMORY_COLUMNS if name in before and name in after}
    peaks = f"{mib(before[peak])} to {mib(after[peak])}" if grown[peak] else mib(before[peak])
    if not any(grown.values()):
        return peaks, row.memory.value.upper()
    column = peak if grown[peak] else max(grown, key=lambda name: abs(grown[name]))
    which = "" if column == peak else f" {memory_words(column)}"
    return peaks, f"{row.memory.value.upper()},{which} {grown[column]:+,}"


def _excess(row: RowComparison) -> str:
    sides = [side for side in (row.base, row.head) if side is not None and side.excess]
    shown = list(dict.fromkeys(" / ".join(ratio(value) for value in side.excess.values()) for side in sides))
    word = {Change.MORE: " LESS ACCURATE", Change.LESS: " more accurate"}.get(row.excess or Change.SAME, "")
    return f"{' to '.join(shown)}{word}" or DASH


def _status(row: RowComparison) -> str:
    base, head = (None if side is None else status_words(side.status) for side in (row.base, row.head))
    if base is None:
        return f"{head}, new"
    if head is None:
        return f"{base}, gone"
    return base if base == head else f"{base} to **{head}**"


def _control(comparison: Comparison, case_id: str) -> str:
    interval = comparison.controls.get(case_id)
    if interval is None:
        return ""
    return f" A/A {three_places(interval.estimate)} ({three_places(interval.low)} to {three_places(interval.high)})"


def _legend(comparison: Comparison) -> str:
    return " ".join(_sentences(comparison))


def _sentences(comparison: Comparison) -> Iterator[str]:
    ratios = [row.time for row in comparison.rows if row.time is not None]
    if any(time.paired for time in ratios):
        yield "Times: head's turn over base's in their common rounds."
    if any(not time.paired for time in ratios):
        yield "Times: head's ratio to the GEMM of its rounds over base's (to the reference where there is no GEMM)."
    if ratios:
        yield "SLOWER, FASTER, SAME: the whole interval is on that side of the margin; UNSURE: it is not."
    if any(time.again is not None for time in ratios):
        yield "Two figures: what seemed SLOWER was measured again with new processes; only twice SLOWER is SLOWER."
    if any(row.time_verdict is not None and not row.time_gated for row in comparison.rows):
        yield "In parentheses: fails nothing (a CPU's time, or of rows with different statuses)."
    if comparison.controls:
        yield "A/A: a second worker of one row against its first, in the same rounds."
    if any(row.memory is not None for row in comparison.rows):
        yield "Bytes: of the peak of forward and backward; MORE if any peak, or what is retained, grew."
    else:
        yield "No memory: it is measured on a GPU only."
    yield "Excess: error over that of eager arithmetic; more than the margin beyond both base's and 1 is LESS ACCURATE."
