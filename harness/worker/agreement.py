"""The verdict on one implementation's loss and gradients: scale-free errors, their excess over eager's, in words.

A gradient agrees where its error is at most `max_excess` times that of eager arithmetic, both taken as no smaller than
the dtype's own rounding: absolute tolerances pass a gradient that is all zero, and tolerances relative to each element
fail what torch itself does. Two null tests ask the same of an all-zero gradient and of one with its rows and columns
shifted by one; where either would pass, the comparison proves nothing, and that is a failure too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from harness.case import Case
from harness.record import Agreement
from harness.worker.eager import EagerErrors
from harness.worker.errors import GradientError, displaced, gradient_error, loss_scale
from harness.worker.oracle import Oracle
from harness.worker.products import slices

_FP32_LOSS_LIMIT = 1e-5
_BLOCK_BYTES = 1 << 27

MaybeGradients = tuple[Tensor | None, Tensor | None, Tensor | None]  # of input (N, D), linear_weight (V, D), bias (V,)


def rounding_floor(dtype: str) -> float:
    """eps / (2 sqrt(3)): the standard deviation of one rounding, relative, just above a power of two.

    bf16 2.3e-3, fp16 2.8e-4, fp32 3.4e-8: no error is judged as if it were smaller.
    """
    return torch.finfo(getattr(torch, dtype)).eps / (2 * math.sqrt(3))


@torch.no_grad()
def agree(
    case: Case,
    loss: Tensor,
    grads: MaybeGradients,
    oracle: Oracle,
    eager: EagerErrors,
    max_excess: float,
    no_grad_loss: Tensor | None = None,
) -> Agreement:
    """Compares loss and gradients (input, linear_weight, linear_bias), None where missing, with the oracle's.

    `no_grad_loss`, the loss computed without autograd, is held to the same limit: its time is published too.
    """
    failures: list[str] = []
    loss_error, loss_limit = _judge_loss(case, loss.detach(), oracle, eager, max_excess, failures)
    if no_grad_loss is not None:
        without_grad: list[str] = []
        _judge_loss(case, no_grad_loss, oracle, eager, max_excess, without_grad)
        failures += [f"without grad, {failure}" for failure in without_grad]
    judge = _Judge(case, max_excess, failures)
    error_input, excess_input = judge.gradient("grad_input", grads[0], oracle.grad_input, None, eager.grad_input)
    error_weight, excess_weight = judge.gradient(
        "grad_weight", grads[1], oracle.grad_weight, oracle.weight_rows, eager.grad_weight
    )
    error_bias, excess_bias = GradientError(None, None, 0), None
    if oracle.grad_bias is not None:
        error_bias, excess_bias = judge.gradient("grad_bias", grads[2], oracle.grad_bias, None, eager.grad_bias)
    return Agreement(
        loss_error=loss_error,
        loss_limit=loss_limit,
        grad_input_error=error_input.whole,
        grad_weight_error=error_weight.whole,
        grad_bias_error=error_bias.whole,
        grad_input_excess=excess_input,
        grad_weight_excess=excess_weight,
        grad_bias_excess=excess_bias,
        grad_input_row_error_p99=error_input.row_p99,
        grad_weight_row_error_p99=error_weight.row_p99,
        sampled_rows=None if oracle.weight_rows is None else oracle.weight_rows.numel(),
        failures=failures,
    )


def _judge_loss(
    case: Case, loss: Tensor, oracle: Oracle, eager: EagerErrors, max_excess: float, failures: list[str]
) -> tuple[float | None, float]:
    """Error and limit of the loss. Both relative to `loss_scale`, the error for reduction none the largest token's.

    The limit: 1e-5, or one unit in the last place of a half-precision loss; but no less than `max_excess` times eager's
    error, for rounding the logits to bf16 alone moves the loss of a few tokens by more than 1e-5.
    """
    limit = _FP32_LOSS_LIMIT
    if loss.dtype in (torch.bfloat16, torch.float16):
        limit = torch.finfo(loss.dtype).eps
    if eager.loss is not None:
        limit = max(limit, max_excess * eager.loss)
    if not loss.is_floating_point() or loss.shape != oracle.loss.shape:
        failures.append(f"loss is {_describe(loss)}, not floating point of shape {tuple(oracle.loss.shape)}")
        return None, limit
    given = loss.to(oracle.loss.device, torch.float64)
    if bool(oracle.loss.isnan().any()):
        if not bool(given.isnan()):
            failures.append(f"loss is {float(given):g} where it must be nan: no row counts")
        return None, limit
    if not bool(given.isfinite().all()):
        failures.append(f"loss has {int((~given.isfinite()).sum())} non-finite values of {given.numel()}")
        return None, limit
    difference = float((given - oracle.loss).abs().max())
    scale = loss_scale(case, oracle)
    if not scale:
        if difference:
            failures.append(f"loss is off by {difference:.2g} where it must be 0: no row counts")
        return None, limit
    if difference / scale > limit:
        failures.append(f"loss: error {difference / scale:.2g} (limit {limit:.2g})")
    return difference / scale, limit


class _Judge:
    """Holds gradients of one case to one limit."""

    def __init__(self, case: Case, max_excess: float, failures: list[str]) -> None:
        self.dtype: torch.dtype = getattr(torch, case.dtype)
        self.floor = rounding_floor(case.dtype)
        self.max_excess = max_excess
        self.failures = failures
        self.vocab_size = case.vocab_size

    def gradient(
        self, name: str, given: Tensor | None, truth: Tensor, rows: Tensor | None, eager: float | None
    ) -> tuple[GradientError, float | None]:
        """Error and excess of a gradient (R, D), or (V, D) of which `rows` (R,) are compared, or (V,)."""
        nothing = GradientError(None, None, 0)
        shape = truth.shape if rows is None else (self.vocab_size, truth.shape[1])
        if (mistake := self._mistake(given, tuple(shape))) is not None or given is None:
            self.failures.append(f"{name} {mistake}")
            return nothing, None
        if truth.dim() == 1:
            truth, given = truth[None], given[None]
        error = gradient_error(given.detach(), truth, rows)
        stray = error.stray
        if rows is not None and error.whole is None:  # the rows that were not sampled must be zero as well
            stray = sum(int(given[part].count_nonzero()) for part in self._blocks(given))
        if stray and (error.whole is None or name == "grad_input"):
            self.failures.append(f"{name} has {stray} elements other than 0 where the true gradient is exactly 0")
        if error.whole is None:
            return error, None
        if eager is None:
            self.failures.append(f"{name}: eager arithmetic is not finite here, so there is nothing to judge it by")
            return error, None
        limit = max(eager, self.floor)
        excess = max(error.whole, self.floor) / limit
        if not excess <= self.max_excess:
            self.failures.append(
                f"{name}: error {error.whole:.2g} is {excess:.3g} x eager's {limit:.2g} (limit {self.max_excess:g})"
            )
        self._null_tests(name, truth, limit)
        return error, excess

    def _null_tests(self, name: str, truth: Tensor, limit: float) -> None:
        """Gradients that are surely wrong go through the same comparison, and must not pass it."""
        shifted = displaced(truth, self.dtype)
        for null in ("a shifted gradient", "an all-zero gradient"):
            error = gradient_error(shifted, truth).whole
            shifted.zero_()
            if error is not None and not error / limit > self.max_excess:
                self.failures.append(
                    f"{name}: the case proves nothing: {null}, error {error:.2g}, would be within "
                    f"{self.max_excess:g} x eager's {limit:.2g}"
                )

    def _mistake(self, given: Tensor | None, shape: tuple[int, ...]) -> str | None:
        """What makes a gradient incomparable, in words."""
        if given is None:
            return "is None"
        if given.dtype != self.dtype or tuple(given.shape) != shape:
            return f"is {_describe(given)}, not {self.dtype} of shape {shape}"
        wrong = sum(int((~given[part].isfinite()).sum()) for part in self._blocks(given))
        return f"has {wrong} non-finite values of {given.numel()}" if wrong else None

    @staticmethod
    def _blocks(tensor: Tensor) -> list[slice]:
        return slices(tensor.shape[0], tensor.element_size() * tensor[0].numel(), _BLOCK_BYTES)


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"
