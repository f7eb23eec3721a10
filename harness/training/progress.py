"""What a training tells while it runs, on stderr: a live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.live import Live
from rich.text import Text

from harness.progress import console
from harness.training.curve_log import Outcome, Step

_PLAIN_PERIOD_S = 10.0  # a log file wants a sign of life, not every step


class TrainingProgress:
    """Curve k of n, its step, loss and gradient norm, and when the curve will be done."""

    def __init__(self, curves: int, steps: int) -> None:
        self._curves = curves
        self._steps = steps
        self._number, self._curve = 0, ""
        self._live: Live | None = None
        self._last_plain = 0.0
        self._began: tuple[float, int] | None = None  # when, and the step before the first that was noted

    @contextmanager
    def shown(self) -> Iterator[TrainingProgress]:
        """Shows progress until the block ends."""
        if not console.is_terminal:
            yield self
            return
        with Live(console=console, transient=True, refresh_per_second=4) as self._live:
            yield self

    def start_curve(self, number: int, curve: str) -> None:
        """`number` counts from 1."""
        self._number, self._curve, self._began = number, curve, None

    def note(self, step: Step) -> None:
        """Says how far the curve is."""
        now = time.monotonic()
        if self._began is None:
            self._began = (now, step.step)
        since, first = self._began
        left = (self._steps - step.step) * (now - since) / max(1, step.step - first)
        line = (
            f"curve {self._number} of {self._curves}  {self._curve}  step {step.step} of {self._steps}  "
            f"loss {step.loss:.4f}  gradient norm {step.grad_norm:.3f}  {step.step_ms:.0f} ms  "
            f"about {int(left) // 60}:{int(left) % 60:02d} left"
        )
        if self._live is not None:
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"))
        elif step.step > first and now - self._last_plain > _PLAIN_PERIOD_S:
            console.print(line, soft_wrap=True)
            self._last_plain = now

    def finish_curve(self, curve: str, outcome: Outcome, seconds: float) -> None:
        reason = f": {outcome.reason}" if outcome.reason else f", {seconds:.0f} s"
        console.print(f"{curve}: {outcome.status}{reason}", soft_wrap=True, markup=False)
