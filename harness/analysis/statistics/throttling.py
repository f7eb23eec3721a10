"""Throttling, from what NVML reported right after each sample."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from harness.analysis.formats import percent
from harness.analysis.statistics.detection import Finding, Kind
from harness.record import Times

# bits of nvmlClocksThrottleReason*, from nvml.h
_HEAT_AND_HARDWARE = {8: "hw slowdown", 32: "sw thermal", 64: "hw thermal", 128: "hw power brake"}
_POWER_CAP = 4
_OFTEN, _SELDOM = 0.95, 0.05  # at the power limit always, or never, is one state; between them lie two
_LOW_CLOCK = 0.9  # of the row's median clock


def throttling(row: str, times: Times) -> Finding | None:
    """Samples that a GPU too hot, braked by its board, or only at times at its power limit has slowed down.

    A GPU at its power limit in every sample is the usual state for large matrix products and no finding: the report's
    head says so. A clock that falls by more than 10 % without any reason given is one. None without NVML.
    """
    bits, clocks = times.throttle_reasons, times.sm_clock_mhz
    seen = [name for bit, name in _HEAT_AND_HARDWARE.items() if any(reason & bit for reason in bits)]
    if seen:
        share = _share([any(reason & bit for bit in _HEAT_AND_HARDWARE) for reason in bits])
        return Finding(Kind.THROTTLING, row, share, f"throttled ({', '.join(seen)}) in {percent(share)} of its samples")
    capped = _share([bool(reason & _POWER_CAP) for reason in bits])
    if _SELDOM < capped < _OFTEN:
        return Finding(
            Kind.THROTTLING, row, capped, f"at the power limit in {percent(capped)} of its samples, not in the others"
        )
    if clocks and capped <= _SELDOM:
        low = _share([clock < _LOW_CLOCK * median(clocks) for clock in clocks])
        if low > _SELDOM:
            words = f"SM clock down to {min(clocks)} MHz, median {median(clocks):.0f} MHz; NVML gives no reason"
            return Finding(Kind.THROTTLING, row, low, words)
    return None


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else 0.0
