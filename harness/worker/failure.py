"""Which status an exception means."""

from __future__ import annotations

import torch

from harness.record import Status
from harness.worker.oracle import DoesNotFit

_OUT_OF_MEMORY_PHRASES = (
    "out of memory",  # CUDA, Triton
    "can't allocate memory",  # torch's CPU allocator
    "CUBLAS_STATUS_ALLOC_FAILED",
)
_REASON_LENGTH = 300  # characters; a reason becomes a footnote


class Unavailable(Exception):
    """The implementation's library is missing or lacks the function; the message says what to install."""


def classify(error: BaseException) -> tuple[Status, str]:
    """The status of a row whose worker raised `error`, and the reason to print."""
    if isinstance(error, Unavailable):
        return Status.UNAVAILABLE, str(error)
    text = " ".join(str(error).split())
    if isinstance(error, DoesNotFit):  # alone on the device, where what is out of memory is tried again, it may
        return Status.OUT_OF_MEMORY, f"could not be judged: {text}"
    out_of_memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(phrase in text for phrase in _OUT_OF_MEMORY_PHRASES)
    )
    summary = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if len(summary) > _REASON_LENGTH:
        summary = summary[: _REASON_LENGTH - 1] + "…"
    return (Status.OUT_OF_MEMORY if out_of_memory else Status.CRASHED), summary
