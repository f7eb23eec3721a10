"""Fresh memory that holds nan: who reads what it has not written is found out.

On CUDA the allocator's cache is filled with bytes of 255, nan in every floating dtype, before a call, which then gets
its memory from there: what segments have left beside live tensors, which no flushing of the cache gives back, and new
blocks. On a CPU, where malloc returns pages of the system's, torch itself fills what it allocates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from harness.worker.device import free_bytes, release_cached_memory

LARGEST_SMALL = 1 << 20  # torch's allocator serves requests up to this size from a pool of their own
_SMALL_BLOCKS = 64  # of that size
_SEGMENT = 2 << 20  # large segments have multiples of this
_ATTEMPTS = 8  # at using up what is free: two are usual
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
    """Requests in bytes, largest first, that use up what the allocator has free on a device's stream.

    `segments` as torch.cuda.memory_snapshot() gives them. The pool is that of the request, not of the block: a small
    pool's block of 1.9 MiB takes two requests, and a block of the large pool that is no larger than a small request
    serves none.
    """
    sizes: list[int] = []
    for segment in segments:
        pool = tuple(segment.get("segment_pool_id", (0, 0)))  # others are of CUDA graphs
        if (segment["device"], segment["stream"], pool) != (device, stream, (0, 0)):
            continue
        for free in (block["size"] for block in segment["blocks"] if block["state"] == "inactive"):
            if segment["segment_type"] == "small":
                whole, rest = divmod(free, LARGEST_SMALL)
                sizes += [LARGEST_SMALL] * whole + [rest] * (rest > 0)
            elif free > LARGEST_SMALL:
                sizes.append(free)
    return sorted(sizes, reverse=True)


def use_up(allocate: Callable[[int], Tensor], unused: Callable[[], Sequence[int]]) -> list[Tensor]:
    """Allocates whatever is free until nothing is: a request may split another block than the one it was meant for."""
    kept: list[Tensor] = []
    try:
        for _ in range(_ATTEMPTS):
            before = len(kept)
            for size in unused():
                kept.append(allocate(size))
            if len(kept) == before:
                break
    except torch.OutOfMemoryError:  # of a request that found its block split: on a full card some stays as it was
        pass
    return kept


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
    size = -(-size // _SEGMENT) * _SEGMENT  # no rest that is too small to be a block of its own
    kept = [_nan_bytes(device, count) for count in [size, *[LARGEST_SMALL] * _SMALL_BLOCKS] if size]
    if torch.cuda.get_allocator_backend() == "native":  # others cannot say what they have free
        index, stream = device.index or 0, torch.cuda.current_stream(device).cuda_stream
        snapshot = torch.cuda.memory_snapshot  # of what segments have left beside live tensors, too
        kept += use_up(
            lambda count: _nan_bytes(device, count),
            lambda: unused_sizes(snapshot(), index, stream),  # type: ignore[no-untyped-call]
        )
    poisoned = sum(block.numel() for block in kept)
    kept.clear()  # into the cache, with what is in it
    yield poisoned


def _nan_bytes(device: torch.device, count: int) -> Tensor:
    return torch.full((count,), _NAN_BYTE, dtype=torch.uint8, device=device)


class ZeroedMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The opposite: inside, what torch.empty and its kin return is zero. Tells unwritten memory from wrong numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if "empty" in func.__name__:
            result.zero_()
        return result
