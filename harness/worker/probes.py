"""What a device can do at best beside its products: a copy within its memory."""

from __future__ import annotations

from collections.abc import Callable

import torch

_COPIED_BYTES = {"cuda": 1 << 29, "cpu": 1 << 24}  # many times the last cache; both buffers take 1 GiB of a GPU


def bytes_of_a_copy(device: torch.device) -> int:
    """What one copy reads and writes, together."""
    return 2 * _COPIED_BYTES[device.type]


def copy_probe(device: torch.device) -> Callable[[], None]:
    """Copies random bits from one buffer to another; the same size in every case, so that cases compare."""
    generator = torch.Generator(device).manual_seed(0)
    source = torch.empty(_COPIED_BYTES[device.type] // 8, dtype=torch.int64, device=device)
    source.random_(generator=generator)  # the power that a transfer draws depends on the data
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)

    return copy
