"""Calls beside the one that is judged: other upstream gradients, another order, shifted logits, the same once more.

Each leaves a sketch, so that no two calls' gradients are alive at once: agreement needs no more memory than a call.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.worker.call import Call
from harness.worker.device import synchronize
from harness.worker.identities import an_order, constant_column, permuted_vocabulary, shift_for
from harness.worker.poison import poisoned_memory
from harness.worker.sketch import Sketch, sketch

_OTHER_SIDE = -3.0  # times the case's upstream gradient: another sign, and no power of two
_STRAGGLING_MS = 0.5  # launches and waiting take a few ten microseconds; a stolen time slice is not seen thrice
_ATTEMPTS = 3


@dataclass(frozen=True)
class Probes:
    """What the calls left. Sketches of the same tensors unless said otherwise."""

    first: Sketch
    upstream: list[tuple[float, Sketch]]  # a factor of the upstream gradient, and what came of it
    order: Tensor  # (V,)
    permuted: Sketch  # classes in that order
    unshifted: Sketch | None  # one column of linear_weight zero; None where the identity does not hold
    shifted: Sketch | None  # the same column a constant


def probe(call: Call, first: Sketch, needed_bytes: int) -> Probes:
    """All calls but the judged one. `first` is one on the tensors as they are."""
    tensors, device = call.tensors, call.tensors.input.device

    def seen(of: Call, without_column: int | None = None) -> Sketch:
        with poisoned_memory(device, needed_bytes):
            loss, gradients = run(of)
        found = sketch(loss, gradients, without_column)
        of.clear_gradients()
        return found

    factors = {_OTHER_SIDE: tensors.upstream * _OTHER_SIDE}
    if tensors.upstream.dim() == 0:  # 1 is what every training has, and some have a shortcut for
        factors[1.0 / float(tensors.upstream)] = torch.ones_like(tensors.upstream)
    upstream = [
        (factor, seen(replace(call, tensors=replace(tensors, upstream=other)))) for factor, other in factors.items()
    ]
    order = an_order(call.case.vocab_size, device)
    with permuted_vocabulary(tensors, order):
        permuted = seen(call)
    pair: list[Sketch] = []
    shift = shift_for(tensors.input) if call.case.softcap is None else None
    if shift is not None:
        for value in (0.0, shift.value):
            with constant_column(tensors.linear_weight, shift.column, value):
                pair.append(seen(call, shift.column))
    unshifted, shifted = pair if pair else (None, None)
    return Probes(first, upstream, order, permuted, unshifted, shifted)


def run(call: Call) -> tuple[Tensor, list[Tensor | None]]:
    """The loss, detached, and (input, linear_weight[, linear_bias]).grad, which stay where they are."""
    call.clear_gradients()
    loss = call.checked_forward()
    call.backward(loss)
    loss = loss.detach()
    synchronize(call.tensors.input.device)
    return loss, [tensor.grad for tensor in call.differentiated]


def straggling_ms(call: Call) -> float | None:
    """Milliseconds that work goes on after the stream of the caller is done: on a stream that nobody waits for.

    Such work is in no time and races with whoever uses the gradients. The least of a few calls; None on a CPU.
    """
    device = call.tensors.input.device
    if device.type != "cuda":
        return None
    least = float("inf")
    for _ in range(_ATTEMPTS):
        call.clear_gradients()
        synchronize(device)
        left = _left_ms(device, call.forward_no_grad)
        left = max(left, _left_ms(device, lambda: call.backward(call.forward())))
        least = min(least, left)
        if least < _STRAGGLING_MS:
            break
    call.clear_gradients()
    return least


def straggles(left_ms: float | None) -> bool:
    """Whether that is more than launching and waiting explain."""
    return left_ms is not None and left_ms >= _STRAGGLING_MS


def _left_ms(device: torch.device, work: Callable[[], object]) -> float:
    kept = work()  # alive until all is done: freeing it is no business of this measurement
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record()
    done.synchronize()
    begin = time.perf_counter()
    torch.cuda.synchronize(device)
    left = 1e3 * (time.perf_counter() - begin)
    del kept
    return left
