"""Implementations that misbehave in one way each; the rest of them is torch's own two lines.

Loaded by workers as `harness.selftest.planted:NAME`; `harness.selftest.faults` says what each must get.
"""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.worker.timing import stopwatch
from implementations.baseline import eager_loss, softcapped_linear
from implementations.contract import Implementation

_TILE = 256
_ACCUMULATIONS = 512
_LEAK_BYTES = 8 << 20
_DELAY_CYCLES = 20_000_000  # about 10 ms of a GPU
_ROWS, _CLASSES = 512, 8192  # of a product that fills 128 of the 132 multiprocessors of an H200 for some 30 us
_STEADY_MS = 300.0  # a power limit is kept over some ten milliseconds

Change = Callable[[Tensor], Tensor]


class _Change(torch.autograd.Function):
    """A tensor as it is, whose gradient is another."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, change: Change) -> Tensor:
        ctx.change = change
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        return ctx.change(upstream[0]), None


def _changed(tensor: Tensor, change: Change) -> Tensor:
    changed: Tensor = _Change.apply(tensor, change)  # type: ignore[no-untyped-call]
    return changed


def _of_weight(change: Change) -> Callable[..., Tensor]:
    def loss(input: Tensor, linear_weight: Tensor, target: Tensor, **settings: Any) -> Tensor:
        return eager_loss(input, _changed(linear_weight, change), target, **settings)

    return loss


def _of_loss(change: Change) -> Callable[..., Tensor]:
    return lambda *arguments, **settings: _changed(eager_loss(*arguments, **settings), change)


def right(*arguments: Any, **settings: Any) -> Tensor:
    """Does what the contract says."""
    return eager_loss(*arguments, **settings)


class Busy:
    """Keeps the device multiplying for `share` of the time that loss and gradients of `loss_function` take.

    Not a wait: a GPU at its power limit saves up what it does not draw meanwhile, and is faster afterwards, so that an
    idle 2 % was found as 0.8 % on an H200. `tensors` are input (N, D), linear_weight (V, D) and target (N,).
    """

    def __init__(self, share: float, loss_function: Callable[..., Tensor], tensors: Sequence[Tensor]) -> None:
        input, linear_weight, target = (tensor.detach() for tensor in tensors)
        self.left, self.right = input[:_ROWS], linear_weight[:_CLASSES].T
        self.output = self.left @ self.right  # memory that stays
        leaves = [tensor.detach().requires_grad_() for tensor in (input, linear_weight)]

        def call() -> None:
            with torch.enable_grad():
                loss = loss_function(*leaves, target)
                torch.autograd.grad(loss, leaves, torch.ones_like(loss))

        self.products = round(share * _steady_ms(call, input.device) / _steady_ms(self._product, input.device))

    def _product(self) -> None:
        torch.mm(self.left, self.right, out=self.output)

    def __call__(self) -> None:
        """One call's share."""
        for _ in range(self.products):
            self._product()


def _steady_ms(work: Callable[[], None], device: torch.device) -> float:
    """Milliseconds of one `work` among so many in a row that the device is at the clock that it keeps then."""
    watch = stopwatch(device)

    def mean_ms(repeats: int) -> float:
        watch.start()
        for _ in range(repeats):
            work()
        watch.mark()
        return watch.elapsed_ms()[0] / repeats

    mean_ms(3)  # compiles
    return mean_ms(math.ceil(_STEADY_MS / mean_ms(3)))


class _Slower:
    """Right, and `share` slower: busy for that long before each loss with a gradient."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.busy: Busy | None = None

    def __call__(self, input: Tensor, linear_weight: Tensor, target: Tensor, **settings: Any) -> Tensor:
        if self.busy is None:
            self.busy = Busy(self.share, partial(eager_loss, **settings), (input, linear_weight, target))
        if torch.is_grad_enabled():
            self.busy()
        return eager_loss(input, linear_weight, target, **settings)


_leaked: list[Tensor] = []


def leaky(input: Tensor, *arguments: Any, **settings: Any) -> Tensor:
    """Right, and keeps a few MiB of every call."""
    _leaked.append(torch.empty(_LEAK_BYTES, dtype=torch.uint8, device=input.device))
    return eager_loss(input, *arguments, **settings)


def _last_tile_zero(gradient: Tensor) -> Tensor:
    changed = gradient.clone()
    changed[(gradient.shape[0] - 1) // _TILE * _TILE :] = 0
    return changed


def _small_rows_zero(gradient: Tensor) -> Tensor:
    """A filter: the half of the rows with the smallest gradients is left out."""
    norms = gradient.float().norm(dim=1)
    return torch.where((norms > norms.median())[:, None], gradient, 0.0)


zero_weight_gradient = _of_weight(torch.zeros_like)
drops_the_last_tile = _of_weight(_last_tile_zero)
filters_small_rows = _of_weight(_small_rows_zero)
loses_the_sign = _of_loss(torch.abs)
reads_unwritten_memory = _of_weight(lambda gradient: gradient + 0 * torch.empty_like(gradient))


class _StaleCache:
    """Keeps a copy of the weights for as long as they are at the same address, and computes with that."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, torch.Size], Tensor] = {}

    def __call__(self, input: Tensor, linear_weight: Tensor, target: Tensor, **settings: Any) -> Tensor:
        kept = self._kept.setdefault((linear_weight.data_ptr(), linear_weight.shape), linear_weight.detach().clone())
        return eager_loss(input, linear_weight + (kept - linear_weight).detach(), target, **settings)


def _on_a_side_stream(gradient: Tensor) -> Tensor:
    """A copy, made on a stream that nobody waits for."""
    copied = torch.empty_like(gradient)
    side = torch.cuda.Stream(gradient.device)  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream(gradient.device))
    with torch.cuda.stream(side):
        torch.cuda._sleep(_DELAY_CYCLES)  # type: ignore[no-untyped-call]
        copied.copy_(gradient)
    copied.record_stream(side)
    return copied


side_stream = _of_weight(_on_a_side_stream)


def mutates_its_input(input: Tensor, *arguments: Any, **settings: Any) -> Tensor:
    """Right, but its backward leaves one element of its input changed."""

    def spoil(upstream: Tensor) -> Tensor:
        input.data[0, 0] += 1
        return upstream

    return _changed(eager_loss(input, *arguments, **settings), spoil)


class _TiledLinear(torch.autograd.Function):
    """Logits; the gradient of linear_weight is added up in its own dtype, a few tokens at a time."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, linear_weight: Tensor) -> Tensor:
        ctx.save_for_backward(input, linear_weight)
        return F.linear(input, linear_weight)

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        input, linear_weight = ctx.saved_tensors
        total = torch.zeros_like(linear_weight)
        for dz, rows in zip(upstream[0].chunk(_ACCUMULATIONS), input.chunk(_ACCUMULATIONS), strict=True):
            total += dz.T @ rows
        return upstream[0] @ linear_weight, total


def accumulates_in_half_precision(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None,
    softcap: float | None,
    **settings: Any,
) -> Tensor:
    """The gradient of linear_weight in 512 additions, each rounded. For cases without bias and softcap."""
    if linear_bias is not None or softcap is not None:
        raise ValueError("linear_bias and softcap must be None here")
    logits: Tensor = _TiledLinear.apply(input, linear_weight)  # type: ignore[no-untyped-call]
    return F.cross_entropy(logits.float(), target, **settings)


def forgets_the_maximum(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None,
    label_smoothing: float,
    ignore_index: int,
    softcap: float | None,
    reduction: str,
) -> Tensor:
    """log(sum(exp(z))) as it is written, for mean and sum: right until exp overflows."""
    z = softcapped_linear(input, linear_weight, linear_bias, softcap).float()
    counts = target != ignore_index
    picked = z.gather(1, target.clamp(min=0)[:, None])[:, 0]
    losses = z.exp().sum(1).log() - (1 - label_smoothing) * picked - label_smoothing * z.mean(1)
    total = losses[counts].sum()
    return total / counts.sum() if reduction == "mean" else total


class _Wavers:
    """Claims to be deterministic; each call scales a gradient by another number next to 1."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *arguments: Any, **settings: Any) -> Tensor:
        self.calls += 1
        factor = 1 + torch.finfo(arguments[1].dtype).eps * (self.calls % 2)
        return _of_weight(lambda gradient: gradient * factor)(*arguments, **settings)


def out_of_memory(input: Tensor, *_arguments: Any, **_settings: Any) -> Tensor:
    """Wants 8 TiB."""
    return torch.empty(1 << 43, dtype=torch.uint8, device=input.device).sum()


def segmentation_fault(*_arguments: Any, **_settings: Any) -> Tensor:
    """Reads at address 0."""
    ctypes.string_at(0)
    raise AssertionError("unreachable")


def hangs(*_arguments: Any, **_settings: Any) -> Tensor:
    """Never answers."""
    while True:
        time.sleep(3600)


slower = Implementation(build=lambda: _Slower(0.02))
stale_cache = Implementation(build=_StaleCache)
claims_determinism = Implementation(build=_Wavers, deterministic=True)
