"""The verdicts on one row of one case: time, memory, errors, status, and which of them are faults."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from harness.analysis.formats import counted, percent, ratio, three_places
from harness.analysis.statistics.bootstrap import Interval
from harness.analysis.statistics.verdict import Verdict
from harness.comparison.policy import Margins
from harness.comparison.ratio import TimeRatio
from harness.comparison.side import MEMORY_COLUMNS, Side, memory_words
from harness.exits import DISAGREES, FAILED_CELL, INCONCLUSIVE, REGRESSION, UNFIT
from harness.record import COMPLETED, FAILED, NOT_RUN, Status

_UNSURE_CODE = {"inconclusive": INCONCLUSIVE, "fail": REGRESSION}


_STATUS = {
    Status.OK: "is ok",
    Status.DISAGREES: "disagrees",
    Status.IMPOSSIBLE: "is impossible",
    Status.OUT_OF_MEMORY: "runs out of memory",
    Status.TIMEOUT: "ran into its timeout",
    Status.CRASHED: "crashed",
    Status.UNSUPPORTED: "is unsupported",
    Status.UNAVAILABLE: "is unavailable",
}


class Change(StrEnum):
    """How memory or an error of head stands to base's."""

    MORE = "more"
    LESS = "less"
    SAME = "same"


@dataclass(frozen=True)
class Fault:
    """Why a comparison does not pass."""

    code: int  # the exit code that it asks for
    words: str  # without the case


@dataclass(frozen=True)
class RowComparison:
    """One row on one case. A side is None where the run has no such row."""

    case_id: str
    setting: str  # the case in words
    name: str
    base: Side | None
    head: Side | None
    time: TimeRatio | None
    time_verdict: Verdict | None  # None where there is nothing to compare
    time_gated: bool
    memory: Change | None
    excess: Change | None
    faults: tuple[Fault, ...]
    slower_or_unfit: bool = False  # by its time, where that may fail


def compare_row(
    case_id: str,
    setting: str,
    name: str,
    base: Side | None,
    head: Side | None,
    time: TimeRatio | None,
    margins: Margins,
    device: str,
    of_trees: bool = False,
) -> RowComparison:
    """Holds head to base by `margins`. `of_trees`: both were asked for the same rows, so a missing one matters."""
    comparable = base is not None and head is not None and {base.status, head.status} <= COMPLETED
    alike = base is not None and head is not None and base.status is head.status  # else times of unlike results
    margin = margins.time_margin if time is None or time.paired else margins.time_margin_across
    verdict = time.verdict(margin) if comparable and time is not None and time.refused is None else None
    gated = comparable and alike and device in margins.time_devices
    found: list[Fault] = []
    if head is not None:
        found += _status_faults(name, base, head, margins.must_be_ok)
    elif margins.must_be_ok:
        found.append(Fault(REGRESSION, f"`{name}` is gone, and the policy wants it ok"))
    elif of_trees and base is not None and base.status in COMPLETED:
        found.append(Fault(REGRESSION, f"`{name}` is gone: base offers it, head does not"))
    if of_trees and base is not None and head is not None and base.status is Status.UNAVAILABLE is not head.status:
        found.append(Fault(INCONCLUSIVE, f"`{name}` could not be compared: base is unavailable: {base.reason}"))
    if gated and time is not None:
        found += _time_faults(name, time, verdict, margin, margins)
    if base is not None and head is not None:
        found += _memory_faults(name, base, head, margins.memory_margin_bytes)
        found += _excess_faults(name, base, head, margins.excess_margin)
    return RowComparison(
        case_id=case_id,
        setting=setting,
        name=name,
        base=base,
        head=head,
        time=time if comparable else None,
        time_verdict=verdict,
        time_gated=gated,
        memory=_memory_change(base, head, margins.memory_margin_bytes),
        excess=_excess_change(base, head, margins.excess_margin),
        faults=tuple(found),
        slower_or_unfit=gated and time is not None and (verdict is Verdict.SLOWER or time.unfit(margin)),
    )


def _status_faults(name: str, base: Side | None, head: Side, must_be_ok: bool) -> Iterator[Fault]:
    was = f", base {_STATUS[base.status]}" if base is not None and base.status is not head.status else ""
    wanted = "; the policy wants it ok" if must_be_ok and head.as_expected else ""
    words = f"`{name}` {_STATUS[head.status]}{was}{wanted}: {head.reason}"
    if head.status is Status.OK or (head.as_expected and not must_be_ok and head.status not in NOT_RUN):
        return
    if head.status in FAILED:
        yield Fault(FAILED_CELL, words)
    elif head.status in COMPLETED:
        yield Fault(DISAGREES, words)
    elif must_be_ok or (base is not None and base.status in COMPLETED):  # it was offered, and is no more
        yield Fault(REGRESSION, words)


def _time_faults(
    name: str, time: TimeRatio, verdict: Verdict | None, margin: float, margins: Margins
) -> Iterator[Fault]:
    if time.refused is not None:
        if margins.unsure != "pass":
            yield Fault(_UNSURE_CODE[margins.unsure], f"`{name}`: times not compared: {time.refused}")
        return
    seen = _seen(time)
    last = time.again or time
    if last.unfit(margin) and last.control is not None:
        words = f"two workers of the same code differ by more than {percent(margin)} (A/A {_written(last.control)})"
        yield Fault(UNFIT, f"`{name}`: {words}: what base and head differ by cannot be told here")
    elif verdict is Verdict.SLOWER and time.interval is not None:
        more = percent(time.interval.estimate - 1)
        yield Fault(REGRESSION, f"`{name}` is SLOWER by {more}: {seen} of base, margin {percent(margin)}")
    elif verdict is Verdict.UNSURE and margins.unsure != "pass":
        yield Fault(_UNSURE_CODE[margins.unsure], f"`{name}`: time UNSURE: {seen} of base, margin {percent(margin)}")


def _seen(time: TimeRatio) -> str:
    """The interval in words, and that of the second measurement."""
    first = "too few common rounds to know what share" if time.interval is None else _written(time.interval)
    return first if time.again is None else f"{first}, with new processes {_seen(time.again)}"


def _memory_change(base: Side | None, head: Side | None, margin_bytes: int) -> Change | None:
    if base is None or head is None or not (base.memory.keys() & head.memory.keys()):
        return None
    growth = [head.memory[column] - base.memory[column] for column in base.memory.keys() & head.memory.keys()]
    if max(growth) > margin_bytes:
        return Change.MORE
    return Change.LESS if min(growth) < 0 and max(growth) <= 0 else Change.SAME


def _memory_faults(name: str, base: Side, head: Side, margin_bytes: int) -> Iterator[Fault]:
    if _memory_change(base, head, margin_bytes) is Change.MORE:
        grown = [
            f"{memory_words(column)} {head.memory[column] - base.memory[column]:+,} bytes"
            for column in MEMORY_COLUMNS
            if column in base.memory
            and column in head.memory
            and head.memory[column] - base.memory[column] > margin_bytes
        ]
        allowed = f", allowed {counted(margin_bytes, 'byte')}" if margin_bytes else ""
        yield Fault(REGRESSION, f"`{name}` takes MORE memory: {', '.join(grown)}{allowed}")


def _grown_excesses(base: Side, head: Side, margin: float) -> list[str]:
    """Gradients whose excess is beyond 1, where eager's is, and has grown by more than the margin."""
    common = [gradient for gradient in base.excess if gradient in head.excess]
    return [g for g in common if head.excess[g] > (1 + margin) * max(base.excess[g], 1.0)]


def _excess_change(base: Side | None, head: Side | None, margin: float) -> Change | None:
    if base is None or head is None or not (base.excess.keys() & head.excess.keys()):
        return None
    if _grown_excesses(base, head, margin):
        return Change.MORE
    return Change.LESS if _grown_excesses(head, base, margin) else Change.SAME


def _excess_faults(name: str, base: Side, head: Side, margin: float) -> Iterator[Fault]:
    if grown := _grown_excesses(base, head, margin):
        figures = ", ".join(f"{g} excess {ratio(base.excess[g])} to {ratio(head.excess[g])}" for g in grown)
        yield Fault(REGRESSION, f"`{name}` is LESS ACCURATE: {figures}, margin {percent(margin)}")


def _written(interval: Interval) -> str:
    return f"{three_places(interval.estimate)} ({three_places(interval.low)} to {three_places(interval.high)})"
