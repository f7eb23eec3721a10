"""Memory outside torch's allocator: how much of the device fills while a call runs, by NVML, beside what torch took."""

from __future__ import annotations

import threading
from typing import Any

import pynvml
import torch

from harness.worker.call import Call

_EVERY_S = 0.0005
_CALLS = 2  # the device is looked at while they run; a block that lives for less than _EVERY_S can be missed


def device_growth(call: Call, device: torch.device, handle: Any | None) -> dict[str, int]:
    """`reserved_growth_bytes` and `device_growth_bytes` of forward + backward, as in `harness.record.Memory`.

    The first is the growth of what torch's allocator holds, the second that of the device's used memory: where the
    second is larger, somebody allocates past the allocator. Nothing else may be allocating on the device meanwhile.
    Empty without NVML.
    """
    if handle is None:
        return {}
    call.clear_gradients()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    reserved, used = torch.cuda.memory_reserved(device), _used_bytes(handle)
    torch.cuda.reset_peak_memory_stats(device)
    with _Watch(handle) as watch:
        for _ in range(_CALLS):
            call.clear_gradients()
            call.backward(call.forward())
            torch.cuda.synchronize(device)
    call.clear_gradients()
    return {
        "reserved_growth_bytes": max(0, torch.cuda.max_memory_reserved(device) - reserved),
        "device_growth_bytes": max(0, watch.most_bytes - used),
    }


def _used_bytes(handle: Any) -> int:
    return int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)


class _Watch:
    """Looks at the device's used memory until it is left."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.most_bytes = 0

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.most_bytes = max(self.most_bytes, _used_bytes(self._handle))

    def _look(self) -> None:
        while not self._done.wait(_EVERY_S):
            self.most_bytes = max(self.most_bytes, _used_bytes(self._handle))
