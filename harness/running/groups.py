"""Groups: which rows of a case are measured side by side, where the device is too small for all of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness import cost
from harness.case import Case
from harness.suite import SuiteImplementation

_SHARE_OF_IDLE_WORKERS = 0.5  # of the device's memory: what inputs and contexts of waiting workers may take
PROCESS_BYTES = {"cuda": 700 << 20, "cpu": 400 << 20}  # a CUDA context with its modules; torch imported


@dataclass(frozen=True)
class Group:
    """Rows whose workers are alive at the same time and play the same rounds, with a referee of their own."""

    rows: tuple[SuiteImplementation, ...]  # whose records this group gives
    guest: SuiteImplementation | None = None  # the reference, playing along where its record is another group's
    twice: SuiteImplementation | None = None  # the row with a second worker


def waiting_bytes(case: Case, device: str) -> int:
    """What a worker takes while it waits for its turn: the case's tensors and its process."""
    return cost.input_bytes(case) + PROCESS_BYTES[device]


def places_on(case: Case, device: str, device_bytes: int) -> int:
    """How many workers beside the referee may wait on the device with the case's tensors."""
    return max(1, int(_SHARE_OF_IDLE_WORKERS * device_bytes / waiting_bytes(case, device)) - 1)


def groups_of(rows: Sequence[SuiteImplementation], reference: str, twice: str | None, places: int) -> list[Group]:
    """Groups of at most `places` workers that cover `rows`, with the reference in each, and the A/A in the first.

    On one place everybody is alone, and nothing has a ratio to the reference. `reference` and `twice` need not be among
    the rows: what is not there does not play.
    """
    leading = [row for row in rows if row.name == reference]
    doubled = [row for row in rows if row.name == twice]
    if len(rows) + len(doubled) <= places:
        return [Group(tuple(rows), twice=_first(doubled))] if rows else []
    if places < 2:
        return [Group((row,)) for row in rows]
    first = [*leading, *(row for row in doubled if row not in leading)]
    queue = [*first, *(row for row in rows if row not in first)]
    both = bool(doubled) and len(first) + 1 <= places
    cut, step = places - both, places - len(leading)
    rest = [tuple(queue[start : start + step]) for start in range(cut, len(queue), step)]
    return [
        Group(tuple(queue[:cut]), twice=_first(doubled) if both else None),
        *(Group(part, guest=_first(leading)) for part in rest),
    ]


def _first(rows: Sequence[SuiteImplementation]) -> SuiteImplementation | None:
    return rows[0] if rows else None
