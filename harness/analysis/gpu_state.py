"""What NVML said of the GPU right after each timed sample, as one line per GPU."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from harness.analysis.formats import percent
from harness.record import Record, Times

IDLE = 1
_BITS = {  # NVML's nvmlClocksThrottleReason*, from nvml.h
    IDLE: "idle",
    2: "applications clocks",
    4: "sw power cap",
    8: "hw slowdown",
    16: "sync boost",
    32: "sw thermal",
    64: "hw thermal",
    128: "hw power brake",
}


def gpu_state(records: Sequence[Record]) -> list[str]:
    """Clock, power and throttling while rows were timed; empty without NVML."""
    traces: dict[str, list[Times]] = {}
    for record in records:
        if record.times is not None:
            traces.setdefault(record.provenance.device_name, []).append(record.times)
    found = {name: words for name, times in traces.items() if (words := _in_words(times))}
    return [f"{'GPU' if len(found) == 1 else name} while timed: {words}" for name, words in found.items()]


def _in_words(traces: Sequence[Times]) -> str:
    clocks = [clock for times in traces for clock in times.sm_clock_mhz]
    power = [watts for times in traces for watts in times.power_w]
    reasons = [bits for times in traces for bits in times.throttle_reasons]
    parts = []
    if clocks:
        parts.append(f"SM clock {min(clocks)}-{max(clocks)} MHz (median {median(clocks):.0f})")
    if power:
        parts.append(f"power up to {max(power):.0f} W")
    if reasons:
        parts.append(bits_in_words(reasons))
    return ", ".join(parts)


def bits_in_words(reasons: Sequence[int]) -> str:
    """NVML's throttle bits of some samples: `not throttled`, or which bits in what share of them."""
    throttled = [bits for bits in reasons if bits & ~IDLE]  # an idle GPU lowers its clocks, and is not throttled
    idle = sum(bits == IDLE for bits in reasons)
    words = "not throttled"
    if throttled:
        seen = [1 << i for i in range(1, max(reasons).bit_length()) if any(bits & 1 << i for bits in throttled)]
        names = ", ".join(_BITS.get(bit, f"bit {bit}") for bit in seen)
        words = f"throttled (bits: {names}) in {percent(len(throttled) / len(reasons))} of the samples"
    return words + (f", {_BITS[IDLE]} in {percent(idle / len(reasons))}" if idle else "")
