"""The referee of a case: the same tensors and no implementation.

It describes them, times the GEMM and a copy, and computes the error of eager arithmetic that every implementation of
the case is judged by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import JsonValue

from harness.case import Case
from harness.cost import gradient_floor_bytes
from harness.worker import environment, probes, timing
from harness.worker.device import free_bytes, prepare_device, synchronize
from harness.worker.inputs import checksum, draw
from harness.worker.oracle import oracle
from harness.worker.sketch import sketches_bytes
from harness.worker.statistics import input_statistics
from harness.worker.yardstick import ORACLE_SHARE, yardstick

_PRODUCTS_A_SAMPLE = {"cuda": 4, "cpu": 1}  # no-grad forward 1, forward 1, backward 2; a CPU's clock is not of interest
_COPIES_A_SAMPLE = 4
_PROBE_SHARE = 8  # the GEMM's output takes at most this fraction of the device's memory, 1/8

Answer = dict[str, JsonValue]


class RefereeSession:
    """The case's tensors without an implementation."""

    def __init__(self, case: dict[str, Any], device: str, memory_fraction: float) -> None:
        self.device = prepare_device(device, memory_fraction)
        self.case = Case.model_validate(case)
        self.tensors = draw(self.case, self.device)
        self.checksum = checksum(self.tensors)
        self.watch = timing.stopwatch(self.device)
        self.nvml = environment.nvml_handle() if self.device.type == "cuda" else None

    def opened(self) -> Answer:
        synchronize(self.device)
        return {"input_checksum": self.checksum, "copy_bytes": probes.bytes_of_a_copy(self.device)}

    def statistics(self) -> Answer:
        return input_statistics(self.case, self.tensors)

    def turn(self, samples: int, lead_in_ms: float = 0.0) -> Answer:
        """Times a copy within the device and the GEMM; their buffers live only as long as the turn.

        A GPU at its power limit takes a few ten milliseconds to lower its clock. Rows work for longer than that before
        they are timed, so the yardstick does too: as many products a sample as a row has at least, one sample untimed.
        The copies come first, for they draw less power.
        """
        copies = self._samples(probes.copy_probe(self.device), _COPIES_A_SAMPLE, samples)
        largest = max(1 << 20, free_bytes(self.device) // _PROBE_SHARE)
        product = timing.gemm_probe(self.tensors.input, self.tensors.linear_weight, largest)
        lead_in = timing.lead_in(self.tensors.input, self.tensors.linear_weight, lead_in_ms, self.watch)
        products = self._samples(product, _PRODUCTS_A_SAMPLE[self.device.type], samples, watched=True, lead_in=lead_in)
        return {"copy_ms": copies.pop("ms"), "gemm_ms": products.pop("ms"), **products}

    def _samples(
        self,
        work: Callable[[], None],
        repeats: int,
        samples: int,
        watched: bool = False,
        lead_in: Callable[[], None] = timing.nothing,
    ) -> dict[str, JsonValue]:
        """Milliseconds of one `work` in each sample of `repeats`, after an untimed one, and what NVML says then."""
        taken: dict[str, list[Any]] = {}
        for sample in range(samples + 1):
            lead_in()
            self.watch.start()
            for _ in range(repeats):
                work()
            self.watch.mark()
            (elapsed_ms,) = self.watch.elapsed_ms()
            if sample > 0:
                measured = {"ms": elapsed_ms / repeats, **(environment.gpu_state(self.nvml) if watched else {})}
                for key, value in measured.items():
                    taken.setdefault(key, []).append(value)
        return dict(taken)

    def eager_errors(self) -> Answer:
        # a worker holds its gradients beside the oracle, and has to cover the same rows; its sketches are gone by then,
        # but a library may have kept as much
        held = gradient_floor_bytes(self.case) + sketches_bytes(self.case)
        budget = int(ORACLE_SHARE * (free_bytes(self.device) - held))
        truth = oracle(self.case, self.tensors, budget)
        measured_by = yardstick(self.case, self.tensors, truth, int(ORACLE_SHARE * free_bytes(self.device)))
        answer: Answer = measured_by.model_dump()
        return answer
