"""How many tokens fit on a card: calls under a limit of the allocator, their number of tokens searched for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pydantic import JsonValue

from harness.case import Case
from harness.record import Status
from harness.worker.call import Call
from harness.worker.device import prepare_device
from harness.worker.failure import classify
from harness.worker.inputs import draw

UNIT = 256  # tokens: what is found is a multiple of it
_TOLERANCE = 1 / 64  # found within this share below the truth
_MOST_TOKENS = 1 << 22  # where a search ends: no batch is larger

Answer = dict[str, JsonValue]


def largest_fits(
    path: str, options: dict[str, JsonValue], case: dict[str, Any], limits_bytes: list[int], device: str = "cuda"
) -> Answer:
    """For each limit the most tokens with which inputs, forward and backward fit, 0 if not even UNIT do.

    `limits_bytes`, ascending, are what the allocator may hold; the CUDA context comes on top. {"refused": reason} where
    the implementation does not offer the case.
    """
    from harness.worker.session import build, refusal  # noqa: PLC0415  (which imports this module)

    reason = refusal(path, case, device)
    if reason is not None:
        return {"refused": reason}
    chosen = prepare_device(device, 1.0)
    from implementations.registry import load  # noqa: PLC0415

    loss_function = build(load(path), options)
    total = torch.cuda.get_device_properties(chosen).total_memory

    def peak_bytes(tokens: int) -> int | None:
        """The allocator's peak, inputs included; None where it does not fit."""
        torch.compiler.reset()  # after a few shapes torch.compile would give up and run eagerly, unasked
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(chosen)
        try:
            some = Case.model_validate(case | {"tokens": tokens})
            call = Call(loss_function, some, draw(some, chosen))
            for tensor in call.differentiated:
                tensor.requires_grad_(True)
            call.backward(call.checked_forward())
            torch.cuda.synchronize(chosen)
            return torch.cuda.max_memory_allocated(chosen)
        except Exception as error:
            # not fitting is the answer here and not a failure; the allocator refuses before CUDA is asked
            if classify(error)[0] is not Status.OUT_OF_MEMORY:
                raise
            return None

    found: list[JsonValue] = []
    fewest = 0
    for limit in limits_bytes:
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), chosen)
        fewest = most_tokens(peak_bytes, limit, fewest)
        found.append(fewest)
    return {"tokens": found}


def most_tokens(peak_bytes: Callable[[int], int | None], limit_bytes: int, known_to_fit: int = 0) -> int:
    """The largest multiple of UNIT, within _TOLERANCE, for which `peak_bytes` is a number.

    Each next guess is where the line through the last two peaks meets the limit, a little less, while nothing has
    failed yet; after that the middle of what is left, since memory grows in steps.
    """
    low, high, seen = known_to_fit, None, [(0, 0)]
    guess = max(4 * UNIT, known_to_fit)
    while True:
        peak = peak_bytes(guess)
        if peak is None:
            high = guess
        else:
            low = max(low, guess)
            seen.append((guess, peak))
        if low >= _MOST_TOKENS or (high is not None and high - low <= max(UNIT, _TOLERANCE * low)):
            return low
        if high is None:
            further = max((1 + 2 * _TOLERANCE) * low, low + UNIT)  # or it would creep up on the limit
            wanted = min(8 * low, max(0.98 * _meeting(seen[-2:], limit_bytes), further))
            guess = min(_MOST_TOKENS, -(-round(wanted) // UNIT) * UNIT)
        else:
            guess = (low + high) // 2 // UNIT * UNIT
            guess = guess if low < guess < high else low + UNIT


def _meeting(seen: list[tuple[int, int]], limit_bytes: int) -> float:
    """Where the line through the two peaks reaches the limit."""
    (fewer, less), (more, most) = seen
    slope = (most - less) / (more - fewer) if more > fewer else 0.0
    return more + (limit_bytes - most) / slope if slope > 0 else 4.0 * more
