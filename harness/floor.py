"""How fast a GPU can be at most: a time below this is an error of the measurement or of the work, not a record.

The bound is the arithmetic at the tensor cores' peak rate and the highest clock. No real kernel comes near it: a cuBLAS
product reaches about three quarters.
"""

from __future__ import annotations

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
_GEMMS = {"fwd_no_grad_ms": 1, "fwd_bwd_ms": 3}  # logits; and the two gradients' products


def time_floors_ms(case: Case, gpu: dict[str, Any]) -> dict[str, float]:
    """The least milliseconds that each sample can take on `gpu` (a record's environment); empty where that is unknown.

    float32 counts at the same rate: TF32 products, which are slower, stay above it.
    """
    rate = _FLOP_PER_CLOCK.get(tuple(gpu.get("compute_capability", ())))
    clock_mhz, multiprocessors = gpu.get("max_sm_clock_mhz"), gpu.get("multiprocessors")
    if rate is None or clock_mhz is None or multiprocessors is None:
        return {}
    gemm_ms = cost.gemm_flop(case) / (rate * multiprocessors * clock_mhz * 1e6) * 1e3
    return {key: gemms * gemm_ms for key, gemms in _GEMMS.items()}


def below_floor(samples: dict[str, list[float]], floors: dict[str, float]) -> str | None:
    """In words, the first kind of sample whose median is below its floor; None if all are possible."""
    for key, floor_ms in floors.items():
        ordered = sorted(samples.get(key, []))
        if ordered and ordered[len(ordered) // 2] < floor_ms:
            return (
                f"{key} {ordered[len(ordered) // 2]:.3g} is below {floor_ms:.3g}, the time of its {_GEMMS[key]} "
                "products at the GPU's peak rate and highest clock"
            )
    return None
