"""The GPU at this moment, before anything of ours runs on it: who else is there, and what its clocks do."""

from __future__ import annotations

import os
import time

import pynvml
from pydantic import JsonValue

from harness.worker.environment import gpu_state, nvml_handle

_LOOKS = 5
_EVERY_S = 0.2


def gpu_now() -> dict[str, JsonValue]:
    """Clock, power, temperature and throttle bits as `gpu_state`; utilisation, used memory, other processes.

    busy_percent: the highest of a second's looks. processes: those with a context on the GPU, not this one; a container
    may hide them, or give their numbers on the host. {"nvml": False} where the driver offers none.
    """
    handle = nvml_handle()
    if handle is None:
        return {"nvml": False}
    busy = 0
    for _ in range(_LOOKS):
        busy = max(busy, int(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu))
        time.sleep(_EVERY_S)
    others = [p for p in pynvml.nvmlDeviceGetComputeRunningProcesses(handle) if p.pid != os.getpid()]
    return {
        "nvml": True,
        **gpu_state(handle),
        "busy_percent": busy,
        "used_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(handle).used),
        # usedGpuMemory is None where the process is not visible from here
        "processes": [{"pid": p.pid, "bytes": p.usedGpuMemory} for p in others],
    }
