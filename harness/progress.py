"""What a run tells while it runs, on stderr: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from harness.record import Record, Status

_PLAIN_PERIOD_S = 10.0  # a log file wants a sign of life, not every phase

LOG = "progress.log"

console = Console(stderr=True, highlight=False)


class Progress:
    """Case k of n, implementation, phase, time left. `logs` gets a file with every phase and when it began."""

    def __init__(self, cases: int, seconds_left: float, logs: Path) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._cases = cases
        self._log = logs / LOG
        self._begin = time.monotonic()
        self._case = ""
        self._number = 0
        self._ends = time.monotonic() + seconds_left
        self._live: Live | None = None
        self._last_plain = 0.0

    @contextmanager
    def shown(self) -> Iterator[Progress]:
        """Shows progress until the block ends."""
        if not console.is_terminal:
            yield self
            return
        with Live(console=console, transient=True, refresh_per_second=4) as self._live:
            yield self

    def start_case(self, number: int, case_id: str, seconds_left: float) -> None:
        """`number` counts from 1; `seconds_left` is the estimate for this case and all that follow."""
        self._number, self._case = number, case_id
        self._ends = time.monotonic() + seconds_left
        self.note("all", "start", always=True)

    def note(self, implementation: str, phase: str, always: bool = False) -> None:
        """Says who is doing what."""
        with self._log.open("a") as log:
            log.write(f"{time.monotonic() - self._begin:8.2f} s  case {self._number}  {implementation}  {phase}\n")
        left = max(0.0, self._ends - time.monotonic())
        line = (
            f"case {self._number} of {self._cases}  {self._case}  {implementation}  {phase}  "
            f"about {int(left) // 60}:{int(left) % 60:02d} left"
        )
        if self._live is not None:
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"))
        elif always or time.monotonic() - self._last_plain > _PLAIN_PERIOD_S:
            console.print(line, soft_wrap=True)
            self._last_plain = time.monotonic()

    def finish_case(self, records: list[Record], seconds: float) -> None:
        """One line for the case, and one for every row that is not ok."""
        measured = [record for record in records if not record.analytic]
        ok = sum(record.status is Status.OK for record in measured)
        console.print(f"{self._case}: {ok} of {len(measured)} ok, {seconds:.0f} s", soft_wrap=True)
        for record in records:
            if record.status is not Status.OK:
                note = " (as expected)" if record.as_expected else ""
                console.print(f"  {record.implementation}: {record.status}{note}: {record.reason}", soft_wrap=True)
