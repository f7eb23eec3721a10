"""Fresh memory that holds nan: who reads what it has not written is found out.

On CUDA the allocator's cache is filled with bytes of 255, nan in every floating dtype, before a call, which then gets
its memory from there: what segments have left beside live tensors, which no flushing of the cache gives back, and new
blocks. On a CPU, where malloc returns pages of the system's, torch itself fills what it allocates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from harness.worker.device import free_bytes, release_cached_memory

_LARGEST_SMALL = 1 << 20  # allocations up to this size come from a pool of their own
_SMALL_BLOCKS = 64  # of that size
_NAN_BYTE = 255


def live_bytes(device: torch.device) -> int:
    """What is allocated now; `peak_bytes` counts from here. 0 on a CPU."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak_bytes(device: torch.device, live: int) -> int:
    """What the calls since `live_bytes` have taken beyond what it gave, `live`; 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) - live if device.type == "cuda" else 0


def unused_sizes(segments: Sequence[Mapping[str, Any]], device: int, stream: int) -> list[int]:
    """Sizes in bytes of what the allocator would hand out first: free blocks of segments that it cannot give back.

    `segments` as torch.cuda.memory_snapshot() gives them, flushed before. A free block of the pool of large allocations
    that is no larger than a small one fits no request.
    """
    return [
        block["size"]
        for segment in segments
        if (segment["device"], segment["stream"]) == (device, stream)
        and tuple(segment.get("segment_pool_id", (0, 0))) == (0, 0)  # not one of a CUDA graph
        for block in segment["blocks"]
        if block["state"] == "inactive" and (segment["segment_type"] == "small" or block["size"] > _LARGEST_SMALL)
    ]


@contextmanager
def poisoned_memory(device: torch.device, needed_bytes: int) -> Iterator[int | None]:
    """Inside, allocations hold nan until they are written. Gives the bytes that were poisoned, None for all.

    `needed_bytes` is what the call inside takes at its peak. Poison never takes the memory that it would need beside.
    """
    if device.type != "cuda":
        before = torch.get_deterministic_debug_mode()
        # Which is what makes torch fill memory. use_deterministic_algorithms would import torch's compiler: a second
        torch.set_deterministic_debug_mode("warn")
        try:
            yield None
        finally:
            torch.set_deterministic_debug_mode(before)
        return
    release_cached_memory(device)
    size = max(0, min(needed_bytes, int(0.9 * free_bytes(device)) - needed_bytes))
    stream = torch.cuda.current_stream(device).cuda_stream
    segments = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
    sizes = unused_sizes(segments, device.index or 0, stream)  # whose best fit is each itself
    sizes += [size, *[_LARGEST_SMALL] * (_SMALL_BLOCKS if size else 0)]
    kept = [torch.empty(count, dtype=torch.uint8, device=device) for count in sizes]
    for block in kept:
        block.fill_(_NAN_BYTE)
    poisoned = sum(block.numel() for block in kept)
    kept.clear()  # into the cache, with what is in it
    del block
    yield poisoned


class ZeroedMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The opposite: inside, what torch.empty and its kin return is zero. Tells unwritten memory from wrong numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if "empty" in func.__name__:
            result.zero_()
        return result
