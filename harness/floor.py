"""How fast a GPU can be at most: a time below this is an error of the measurement or of the work, not a record.

Two floors. The arithmetic: 1 product for the forward and 3 for forward and backward, of the tokens that count, at the
tensor cores' peak rate and the highest clock; no real kernel comes near it, a cuBLAS product reaches about three
quarters. The bytes: what must be read and written once, at the memory's peak rate, less what may still wait in the L2
cache to be written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from harness import cost
from harness.case import Case

# Dense bf16/fp16 floating-point operations per clock and multiprocessor, by compute capability: the datasheets' TFLOP/s
# over multiprocessors and boost clock (A100, RTX 3090, L40S, H100, B200, RTX 5090). Where a part halves the rate for
# fp32 accumulation the full rate stands here: a floor must not be too high.
_FLOP_PER_CLOCK = {
    (8, 0): 2048,
    (8, 6): 1024,
    (8, 9): 1024,
    (9, 0): 4096,
    (10, 0): 8192,
    (12, 0): 1024,
}
_TRANSFERS_PER_CLOCK = 2  # of the memory clock that NVML reports, for HBM and GDDR alike


@dataclass(frozen=True)
class Floors:
    """The least milliseconds of one kind of sample; None where the GPU is not known well enough."""

    arithmetic_ms: float | None
    bytes_ms: float | None

    @property
    def higher_ms(self) -> float | None:
        """The one that binds."""
        known = [floor for floor in (self.arithmetic_ms, self.bytes_ms) if floor is not None]
        return max(known, default=None)


def time_floors(
    case: Case, gpu: Mapping[str, Any], statistics: Mapping[str, Any], copied_bytes_per_s: float = 0.0
) -> dict[str, Floors]:
    """The floors of each kind of sample on `gpu` (a record's environment), by the name of its column.

    `statistics`: the referee's, of the inputs (a record's); an ignored token costs no product.
    float32 counts at the same rate: TF32 products, which are slower, stay above it. `copied_bytes_per_s` is what a copy
    reached: where it is more than the clocks promise, they were misread.
    """
    flop_per_s, bytes_per_s, cached = _peak_flop_per_s(gpu), _peak_bytes_per_s(gpu), gpu.get("l2_bytes") or 0
    counted = cost.counted_tokens(case, statistics)
    if bytes_per_s is not None:
        bytes_per_s = max(bytes_per_s, copied_bytes_per_s)
    return {
        key: Floors(
            None if flop_per_s is None else gemms * cost.gemm_flop(case, counted) / flop_per_s * 1e3,
            None if bytes_per_s is None else max(0, moved - cached) / bytes_per_s * 1e3,
        )
        for key, gemms, moved in (
            ("fwd_no_grad_ms", cost.FORWARD_GEMMS, cost.forward_bytes(case, counted)),
            ("fwd_bwd_ms", cost.FORWARD_BACKWARD_GEMMS, cost.forward_backward_bytes(case, counted)),
        )
    }


def below_floor(
    samples: Mapping[str, Sequence[float]], floors: Mapping[str, Floors], skips_work: bool = False
) -> str | None:
    """In words, the first kind of sample whose median is below a floor; None if all are possible.

    What skips work is held to the bytes alone: it may leave products out, but neither its inputs nor its results.
    """
    for key, floor in floors.items():
        if not samples.get(key):
            continue
        taken_ms = median(samples[key])
        if floor.bytes_ms is not None and taken_ms < floor.bytes_ms:
            return (
                f"{key} {taken_ms:.3g} is below {floor.bytes_ms:.3g}, the time to read its inputs and write its "
                "results once at the memory's peak rate"
            )
        if not skips_work and floor.arithmetic_ms is not None and taken_ms < floor.arithmetic_ms:
            return (
                f"{key} {taken_ms:.3g} is below {floor.arithmetic_ms:.3g}, the time of its products at the GPU's peak "
                "rate and highest clock"
            )
    return None


def _peak_flop_per_s(gpu: Mapping[str, Any]) -> float | None:
    rate = _FLOP_PER_CLOCK.get(tuple(gpu.get("compute_capability") or ()))
    clock_mhz, multiprocessors = gpu.get("max_sm_clock_mhz"), gpu.get("multiprocessors")
    if rate is None or clock_mhz is None or multiprocessors is None:
        return None
    return float(rate * multiprocessors * clock_mhz * 1e6)


def _peak_bytes_per_s(gpu: Mapping[str, Any]) -> float | None:
    clock_mhz, bus_bits = gpu.get("max_memory_clock_mhz"), gpu.get("memory_bus_bits")  # the width: newer records
    if clock_mhz is None or bus_bits is None:
        return None
    return float(_TRANSFERS_PER_CLOCK * clock_mhz * 1e6 * bus_bits / 8)
