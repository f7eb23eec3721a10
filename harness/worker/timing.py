"""Time of a call: CUDA events around forward and backward, the L2 cache flushed before each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from harness.worker.call import Call
from harness.worker.device import l2_flush_buffer, synchronize

_MOST_SETTLING_CALLS = 8
_LEAD_IN_BYTES = 1 << 28  # of a product's output: a few launches a millisecond, and little memory beside a row's own
_SETTLED = 0.8  # a call that takes more than this share of the one before it has nothing left to compile


class Stopwatch(Protocol):
    """Times marks within a stream of work; `elapsed_ms` waits for the work to finish."""

    def start(self) -> None:
        """Flushes the cache and sets the first mark."""

    def mark(self) -> None:
        """Sets the next mark."""

    def elapsed_ms(self) -> list[float]:
        """Milliseconds between each mark and the one before it."""


class CudaStopwatch:
    """Events on the current stream. The flush runs long enough for the first launches to queue up behind it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._flush = l2_flush_buffer(device)
        self._events: list[torch.cuda.Event] = []

    def start(self) -> None:
        if self._flush is not None:
            self._flush.zero_()
        self._events = []
        self.mark()

    def mark(self) -> None:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._events.append(event)

    def elapsed_ms(self) -> list[float]:
        torch.cuda.synchronize(self._device)
        return [a.elapsed_time(b) for a, b in zip(self._events, self._events[1:], strict=False)]


class CpuStopwatch:
    """perf_counter; on a CPU torch's operations are done when they return."""

    def __init__(self) -> None:
        self._marks: list[float] = []

    def start(self) -> None:
        self._marks = [time.perf_counter()]

    def mark(self) -> None:
        self._marks.append(time.perf_counter())

    def elapsed_ms(self) -> list[float]:
        return [1e3 * (b - a) for a, b in zip(self._marks, self._marks[1:], strict=False)]


def stopwatch(device: torch.device) -> Stopwatch:
    """The stopwatch of `device`."""
    return CudaStopwatch(device) if device.type == "cuda" else CpuStopwatch()


def settle(call: Call, device: torch.device) -> tuple[float, float]:
    """Runs everything a sample runs until it gets no faster: compiling and autotuning end here.

    Returns seconds of the first forward + backward, and of all calls together. The first one is held to the contract.
    """
    begin = time.perf_counter()
    call.backward(call.checked_forward())
    synchronize(device)
    first_call_s = time.perf_counter() - begin
    seconds: list[float] = []
    while len(seconds) < _MOST_SETTLING_CALLS:
        begin = time.perf_counter()
        warm_up(call)
        synchronize(device)
        seconds.append(time.perf_counter() - begin)
        if len(seconds) > 1 and seconds[-1] > _SETTLED * seconds[-2]:
            break
    return first_call_s, first_call_s + sum(seconds)


def warm_up(call: Call) -> None:
    """One untimed sample: after an emptied cache it also gets the memory that the timed ones will use."""
    call.clear_gradients()
    call.backward(call.forward())
    call.clear_gradients()
    call.forward_no_grad()


def nothing() -> None:
    """The lead-in of a call that has none."""


def sample(call: Call, watch: Stopwatch, lead_in: Callable[[], None] = nothing) -> tuple[float, float, float]:
    """Milliseconds of (no-grad forward, forward, backward). Forward and backward belong to one call.

    `lead_in` is what the GPU does right before each, untimed.
    """
    call.clear_gradients()
    lead_in()
    watch.start()
    call.forward_no_grad()
    watch.mark()
    (fwd_no_grad_ms,) = watch.elapsed_ms()
    lead_in()
    watch.start()
    loss = call.forward()
    watch.mark()
    call.backward(loss)
    watch.mark()
    fwd_ms, bwd_ms = watch.elapsed_ms()
    del loss
    call.clear_gradients()
    return fwd_no_grad_ms, fwd_ms, bwd_ms


def gemm_probe(input: Tensor, linear_weight: Tensor, largest_output_bytes: int) -> Callable[[], None]:
    """The yardstick: input (N, D) times linear_weight (V, D) transposed, by cuBLAS in bf16, into one reused buffer.

    The vocabulary is cut into equal chunks whose (N, chunk) output fits `largest_output_bytes`. It uses the case's own
    tensors, since the power that a product draws, and so its clock, depends on the data. On a CPU, where bf16 may be
    emulated, the product is taken in the tensors' own dtype.
    """
    dtype = torch.bfloat16 if input.is_cuda else input.dtype
    left, right = input.to(dtype), linear_weight.to(dtype)
    pieces = right.chunk(-(-left.shape[0] * right.shape[0] * dtype.itemsize // largest_output_bytes))
    output = torch.empty(left.shape[0] * pieces[0].shape[0], dtype=dtype, device=left.device)

    def product() -> None:
        for piece in pieces:
            torch.mm(left, piece.T, out=output[: left.shape[0] * piece.shape[0]].view(left.shape[0], -1))

    return product


def lead_in(input: Tensor, linear_weight: Tensor, milliseconds: float, watch: Stopwatch) -> Callable[[], None]:
    """Dense work for at least `milliseconds`, queued and not waited for: the case's GEMM (`gemm_probe`), over and over.

    What comes next then starts at the clock of a GPU that has been busy with products, as in a training step, and not
    at one that its own lighter calls have left. `watch` times one product. Nothing on a CPU, and for 0 ms.
    """
    if not milliseconds or not input.is_cuda:
        return nothing
    product = gemm_probe(input.detach(), linear_weight.detach(), _LEAD_IN_BYTES)
    product()  # cuBLAS sets up
    watch.start()
    product()
    watch.mark()
    (taken_ms,) = watch.elapsed_ms()
    repeats = max(1, math.ceil(milliseconds / taken_ms))

    def work() -> None:
        for _ in range(repeats):
            product()

    return work
