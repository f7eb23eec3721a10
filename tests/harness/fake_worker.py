"""A worker without a process: answers every request at once, as a GPU's would, and fails as its name says."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any, ClassVar

from harness.record import Status
from harness.running.process import WorkerFailure

GPU = {"sm_clock_mhz": 1620, "power_w": 700.0, "temperature_c": 60, "throttle_reasons": 4}
AGREEMENT = {
    "loss_error": 0.0,
    "loss_limit": 1e-5,
    "grad_input_error": 1e-3,
    "grad_weight_error": 1e-3,
    "grad_input_excess": 1.0,
    "grad_weight_excess": 1.0,
}


class FakeWorker:
    """Takes the place of `harness.running.process.Worker`. Names that begin with `full` fail beside others, `dies` in
    round 3, `refuses` when opened, `instant` is faster than any GPU; `pause_s` is what every answer takes.
    """

    pause_s: ClassVar[float] = 0.0
    alive: ClassVar[list[FakeWorker]] = []
    dead: ClassVar[set[str]] = set()  # names of workers whose process ended while they waited
    log: ClassVar[list[tuple[str, str]]] = []  # (worker, request) in the order of the answers
    _times = itertools.count()

    def __init__(self, log: Path, origin: Any = None) -> None:
        self.name = log.stem
        self.turns = 0
        self.told: list[tuple[str, dict[str, Any]]] = []
        self._request: tuple[str, dict[str, Any]] = ("", {})
        FakeWorker.alive.append(self)
        FakeWorker.log.append((self.name, "start"))

    @property
    def running(self) -> bool:
        return self in FakeWorker.alive and self.name not in FakeWorker.dead

    def send(self, what: str, **arguments: Any) -> None:
        assert self in FakeWorker.alive
        self._request = (what, arguments)

    def tell(self, what: str, **arguments: Any) -> None:
        self.told.append((what, arguments))

    def receive(self, what: str, timeout_s: float) -> dict[str, Any]:
        asked, arguments = self._request
        assert asked.startswith(what)  # the referee's request to open has a name of its own
        time.sleep(FakeWorker.pause_s)
        FakeWorker.log.append((self.name, what))
        beside = {worker.name for worker in FakeWorker.alive} - {self.name, "referee"}
        if self.name.startswith("full") and beside:
            raise WorkerFailure(Status.OUT_OF_MEMORY, "full")
        if self.name.startswith("dies") and self.turns == 3:
            raise WorkerFailure(Status.CRASHED, "killed by SIGSEGV during 'turn'")
        answer: dict[str, Any] = getattr(self, f"_{asked}")(**arguments)
        return answer

    def kill(self) -> None:
        if self in FakeWorker.alive:
            FakeWorker.alive.remove(self)

    close = kill

    def _open_referee(self, **_: Any) -> dict[str, Any]:
        return {"input_checksum": "c", "copy_bytes": 1 << 30}

    def _open(self, **_: Any) -> dict[str, Any]:
        if self.name.startswith("refuses"):
            return {"refused": "does not do that"}
        traits = {"grads_in_forward": False, "interpreted": False, "skips_work": "skips" in self.name}
        return traits | {"autotunes": self.name.startswith("tunes"), "input_checksum": "c", "source_sha256": None}

    def _statistics(self) -> dict[str, Any]:
        return {"counted_rows": 8192}

    def _settle(self) -> dict[str, Any]:
        return {"first_call_s": 1.0, "settle_s": 2.0}

    def _figures(self) -> dict[str, Any]:
        return {"figures": {}}

    def _memory(self, **_: Any) -> dict[str, Any]:
        names = ("fwd_no_grad_peak", "fwd_peak", "bwd_peak", "fwd_bwd_peak", "retained")
        return {f"{name}_bytes": 1 << 20 for name in names}

    def _turn(self, samples: int, lead_in_ms: float) -> dict[str, Any]:
        self.turns += 1
        state = {key: [value] * samples for key, value in GPU.items()}
        taken = [60.0 + next(FakeWorker._times) * 1e-6 for _ in range(samples)]  # no two alike: who took which is seen
        if self.name == "referee":
            return {"gemm_ms": [value / 4 for value in taken], "copy_ms": [value / 100 for value in taken], **state}
        if self.name.startswith("instant"):
            taken = [value / 1e4 for value in taken]
        columns = {"fwd_no_grad_ms": 0.3, "fwd_ms": 0.4, "bwd_ms": 0.6, "fwd_bwd_ms": 1.0}
        return {name: [value * share for value in taken] for name, share in columns.items()} | state

    def _eager_errors(self) -> dict[str, Any]:
        return {}

    def _agree(self, eager: Any, max_excess: float) -> dict[str, Any]:
        return AGREEMENT
