"""Whether a planted fault got what it must get."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from harness.analysis.formats import mib
from harness.analysis.statistics.ratio import ratio_interval
from harness.analysis.statistics.turns import turns_of
from harness.analysis.statistics.verdict import Verdict, verdict_of
from harness.record import Record
from harness.selftest.faults import RIGHT, Fault

_LEAST_LEAK_BYTES = 4 << 20
_PLAUSIBLE_SHARE = 0.005  # a slowdown of 2 % is found as 1.5 to 2.5 %: a right verdict for a wrong reason is none


class Outcome(StrEnum):
    """How the harness did with one fault."""

    CAUGHT = "caught"
    MISSED = "missed"
    UNSURE = "unsure"  # the verdict on the slow one: more rounds may tell


@dataclass(frozen=True)
class Finding:
    """A fault, what it had to get and what it got, in words."""

    fault: Fault
    wanted: str
    found: str
    outcome: Outcome


def finding(fault: Fault, records: Sequence[Record]) -> Finding:
    """From the records of the fault's group, `right`'s among them."""
    by_name = {record.implementation: record for record in records}
    record = by_name.get(fault.name)
    wanted = fault.status.value + (f": …{fault.words}…" if fault.words else "")
    if record is None:
        return Finding(fault, wanted, "no record", Outcome.MISSED)
    found = record.status.value + (f": {record.reason}" if record.reason else "")
    if record.status is not fault.status or fault.words not in (record.reason or ""):
        return Finding(fault, wanted, found, Outcome.MISSED)
    if fault.verdict:
        return _of_time(fault, record, by_name[RIGHT.name])
    if fault.leaks:
        return _of_memory(fault, record, by_name[RIGHT.name])
    return Finding(fault, wanted, found, Outcome.CAUGHT)


def _of_time(fault: Fault, record: Record, right: Record) -> Finding:
    wanted = "slower, by 2 %"
    head, base = turns_of(record), turns_of(right)
    ratio = ratio_interval(head, base) if head is not None and base is not None else None
    verdict = verdict_of(ratio)
    if ratio is None:
        return Finding(fault, wanted, "too few rounds", Outcome.MISSED)
    found = f"{verdict.value}: {ratio.estimate:.4f} [{ratio.low:.4f}, {ratio.high:.4f}] in {ratio.rounds} rounds"
    if verdict is Verdict.UNSURE:
        return Finding(fault, wanted, found, Outcome.UNSURE)
    near = abs(ratio.estimate - 1.02) <= _PLAUSIBLE_SHARE  # a wide interval touches much; it is found as its middle
    return Finding(fault, wanted, found, Outcome.CAUGHT if verdict is Verdict.SLOWER and near else Outcome.MISSED)


def _of_memory(fault: Fault, record: Record, right: Record) -> Finding:
    """The leak must be seen, and none where there is none."""
    leaked = [memory.leaked_bytes if memory is not None else None for memory in (record.memory, right.memory)]
    found = f"leaked {mib(leaked[0])} MiB, right {mib(leaked[1])} MiB"
    caught = leaked[0] is not None and leaked[0] >= _LEAST_LEAK_BYTES and leaked[1] == 0
    return Finding(fault, "a leak of some MiB, and none of right", found, Outcome.CAUGHT if caught else Outcome.MISSED)
