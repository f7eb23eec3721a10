"""What the allocator has left is used up, by its own rules: a model of torch's native CUDA caching allocator."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from harness.worker.poison import LARGEST_SMALL, unused_sizes, use_up

MIB = 1 << 20
UNIT = 512  # bytes: what sizes are multiples of


class Block:
    """A piece of a segment; in use, or free."""

    def __init__(self, segment: Segment, begin: int, size: int) -> None:
        self.segment, self.begin, self.size, self.used = segment, begin, size, False

    def place(self) -> slice:
        return slice(self.begin // UNIT, (self.begin + self.size) // UNIT)


class Segment:
    """What was taken from the device at once."""

    def __init__(self, kind: str, size: int) -> None:
        self.kind = kind
        self.poisoned = np.zeros(size // UNIT, dtype=bool)
        self.blocks = [Block(self, 0, size)]


class CachingAllocator:
    """Pools by the size of the request, best fit, splitting, merging; segments of 2 MiB, 20 MiB, or multiples of 2 MiB.

    After c10/cuda/CUDACachingAllocator.cpp of torch 2.11, without its settings.
    """

    def __init__(self, device_bytes: int = 1 << 40) -> None:
        self.segments: list[Segment] = []
        self.left = device_bytes

    def allocate(self, request: int) -> Block:
        size = max(UNIT, -(-request // UNIT) * UNIT)
        kind = "small" if size <= LARGEST_SMALL else "large"
        pool = [b for s in self.segments if s.kind == kind for b in s.blocks]
        fitting = [b for b in pool if not b.used and b.size >= size]
        found = min(fitting, key=lambda b: b.size) if fitting else self._segment(kind, size).blocks[0]
        rest = found.size - size
        if rest >= UNIT if kind == "small" else rest > LARGEST_SMALL:
            place = found.segment.blocks.index(found)
            found.segment.blocks.insert(place + 1, Block(found.segment, found.begin + size, rest))
            found.size = size
        found.used = True
        return found

    def _segment(self, kind: str, size: int) -> Segment:
        whole = 2 * MIB if kind == "small" else 20 * MIB if size < 10 * MIB else -(-size // (2 * MIB)) * 2 * MIB
        if whole > self.left:
            raise torch.OutOfMemoryError
        self.left -= whole
        self.segments.append(Segment(kind, whole))
        return self.segments[-1]

    def poison(self, request: int) -> Block:
        block = self.allocate(request)
        block.segment.poisoned[block.place()] = True
        return block

    def free(self, block: Block) -> None:
        block.used = False
        blocks = block.segment.blocks
        merged = [blocks[0]]
        for after in blocks[1:]:
            if merged[-1].used or after.used:
                merged.append(after)
            else:
                merged[-1].size += after.size
        block.segment.blocks = merged

    def snapshot(self) -> list[dict[str, Any]]:
        state = {True: "active_allocated", False: "inactive"}
        return [
            {
                **{"device": 0, "stream": 0, "segment_pool_id": (0, 0), "segment_type": segment.kind},
                "blocks": [{"size": block.size, "state": state[block.used]} for block in segment.blocks],
            }
            for segment in self.segments
        ]

    def unpoisoned(self) -> int:
        """Bytes that a request could get and that were never filled."""
        free = [b for s in self.segments for b in s.blocks if not b.used]
        reachable = [b for b in free if b.segment.kind == "small" or b.size > LARGEST_SMALL]
        return UNIT * sum(int((~b.segment.poisoned[b.place()]).sum()) for b in reachable)


def poison(allocator: CachingAllocator) -> None:
    kept: Any = use_up(allocator.poison, lambda: unused_sizes(allocator.snapshot(), 0, 0))  # type: ignore[arg-type]
    for block in kept:
        allocator.free(block)


def test_a_small_blocks_room_is_used_up_by_small_requests():
    """64 KiB of targets and an upstream gradient leave 1.9 MiB: one request of that size would open a large segment."""
    allocator = CachingAllocator()
    for size in (64 * 1024, 512):
        allocator.allocate(size)
    poison(allocator)
    assert allocator.unpoisoned() == 0
    assert [segment.kind for segment in allocator.segments] == ["small"]


@pytest.mark.parametrize("seed", range(100))
def test_nothing_that_a_call_can_get_is_left_out(seed):
    chance, allocator = random.Random(seed), CachingAllocator()
    largest = chance.choice([4096, MIB, 30 * MIB])
    blocks = [allocator.allocate(chance.randrange(1, largest)) for _ in range(chance.randrange(1, 60))]
    for block in chance.sample(blocks, chance.randrange(len(blocks))):
        allocator.free(block)
    taken = len(allocator.segments)
    poison(allocator)
    assert allocator.unpoisoned() == 0
    assert len(allocator.segments) <= taken + 2


def test_a_full_card_ends_it():
    allocator = CachingAllocator(device_bytes=2 * MIB)
    allocator.allocate(LARGEST_SMALL)
    sizes = iter([[LARGEST_SMALL, 512], []])
    kept = use_up(allocator.poison, lambda: next(sizes))  # type: ignore[arg-type]
    assert len(kept) == 1


def test_only_what_the_call_could_get():
    """Of its device, its stream and the common pool."""

    def segment(**changed: Any) -> dict[str, Any]:
        common = {"device": 0, "stream": 0, "segment_type": "large", "segment_pool_id": (0, 0)}
        return {**common, "blocks": [{"state": "inactive", "size": 5 * MIB}], **changed}

    segments = [segment(), segment(stream=7), segment(device=1), segment(segment_pool_id=(0, 1))]
    assert unused_sizes(segments, device=0, stream=0) == [5 * MIB]
    pending = {"state": "active_pending_free", "size": 3 * MIB}
    tiny = {"state": "inactive", "size": LARGEST_SMALL}
    assert unused_sizes([segment(blocks=[pending, tiny])], device=0, stream=0) == []
    assert unused_sizes([segment(blocks=[tiny], segment_type="small")], device=0, stream=0) == [LARGEST_SMALL]
    large_small = {"state": "inactive", "size": LARGEST_SMALL + 512}
    assert unused_sizes([segment(blocks=[large_small], segment_type="small")], 0, 0) == [LARGEST_SMALL, 512]
