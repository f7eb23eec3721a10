"""What the peak of a call is made of: the allocator's history, replayed to the moment when most was live."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any

import torch

from harness.record import PeakBlock
from harness.worker.call import Call

_MOST_ENTRIES = 1 << 20  # of the history; a call of thousands of chunks makes a few ten thousand
_MOST_BLOCKS = 8
_MOST_FRAMES = 3

Event = dict[str, Any]  # of torch.cuda.memory._snapshot: action, addr, size, frames


def peak_blocks(call: Call, device: torch.device) -> list[PeakBlock]:
    """The largest blocks at the peak of one forward and backward, with the Python frames that allocated them.

    Blocks that were live before, inputs among them, are not in the history. A pass of its own: recording costs time.
    """
    call.clear_gradients()
    torch.cuda.synchronize(device)
    torch.cuda.memory._record_memory_history("all", context="alloc", stacks="python", max_entries=_MOST_ENTRIES)
    try:
        call.backward(call.forward())
        torch.cuda.synchronize(device)
        snapshot = torch.cuda.memory._snapshot(device)
    finally:
        torch.cuda.memory._record_memory_history(None)
    call.clear_gradients()
    return largest(live_at_peak(snapshot["device_traces"][device.index or 0]))


def live_at_peak(events: Sequence[Event]) -> list[Event]:
    """The allocations that were live when their sum was largest, for the first time."""
    live: dict[int, Event] = {}
    total = most = 0
    at_most = -1
    for position, event in enumerate(events):
        total += _change(live, event)
        if total > most:
            most, at_most = total, position
    live.clear()
    for event in events[: at_most + 1]:
        _change(live, event)
    return list(live.values())


def _change(live: dict[int, Event], event: Event) -> int:
    """Bytes that the event adds. A block is the caller's until it asks for it to be freed, whenever that is done."""
    if event["action"] == "alloc":
        live[event["addr"]] = event
        return int(event["size"])
    if event["action"] == "free_requested" and event["addr"] in live:
        return -int(live.pop(event["addr"])["size"])
    return 0


def largest(blocks: Iterable[Event]) -> list[PeakBlock]:
    """Blocks from one place together, the places with most bytes first."""
    places: dict[tuple[str, ...], list[int]] = {}
    for block in blocks:
        places.setdefault(frames_of(block), []).append(int(block["size"]))
    found = [PeakBlock(bytes=sum(sizes), count=len(sizes), frames=list(frames)) for frames, sizes in places.items()]
    return sorted(found, key=lambda block: -block.bytes)[:_MOST_BLOCKS]


def frames_of(block: Event) -> tuple[str, ...]:
    """The innermost frames, those of torch and of this harness left out where there are others."""
    frames = [frame for frame in block.get("frames", ()) if frame["filename"].endswith(".py")]
    telling = [frame for frame in frames if not {"torch", "harness"} & set(PurePath(frame["filename"]).parts)]
    return tuple(
        f"{'/'.join(PurePath(frame['filename']).parts[-2:])}:{frame['line']} {frame['name']}"
        for frame in (telling or frames)[:_MOST_FRAMES]
    )
