"""Temperature scaling (Guo et al. 2017): the one number T that makes softmax(s / T) likeliest on validation tokens.

With the inverse temperature t = 1/T, s the capped logits and y the target, the mean loss is

    L(t) = mean_n [lse(t s_n) - t s_ny],   L'(t) = mean_n [E_p s - s_ny],   L''(t) = mean_n Var_p s >= 0

so it is convex in t and falls towards one minimum from both sides in log T too. Newton steps in t, with the bracket
that the sign of L' gives: a step that leaves it is replaced by the bracket's middle in log T. A step is one pass over
the logits, chunk by chunk; about six are needed. Accuracy does not change: dividing by T keeps the order of the
logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.calibration.head import CHUNK_BYTES, Head, Tokens, capped_logits, counted_tokens, token_chunks
from harness.worker.products import without_tf32

_TOLERANCE = 1e-5  # of log T; the loss is flat there, so it is off by the square of this
_NEWTON_PASSES = 8  # then every other step halves the bracket: if all tokens are right, Newton's crawl to the limit
_MOST_PASSES = 60


@dataclass(frozen=True)
class TemperatureFit:
    """The temperature and what it was found from."""

    temperature: float
    loss_nats: float  # mean, on the fitting tokens; never above unscaled_loss_nats
    unscaled_loss_nats: float  # at T = 1
    log_standard_error: float  # of log T, from the curvature; tokens taken as independent; inf where the loss is flat
    at_limit: bool  # the minimum lies beyond the range of temperatures; all tokens right and T -> 0, for example
    passes: int  # over the logits


@dataclass(frozen=True)
class _Point:
    """The mean loss at an inverse temperature, with its derivatives there."""

    inverse: float
    loss: float
    slope: float
    curvature: float


@torch.no_grad()
def fit_temperature(
    hidden: Tensor,
    target: Tensor,
    head: Head,
    *,
    lowest: float = 0.05,
    highest: float = 20.0,
    chunk_bytes: int = CHUNK_BYTES,
    dtype: torch.dtype = torch.float32,
) -> TemperatureFit:
    """The temperature in lowest..highest of least mean loss on hidden (N, D), target (N,) int64, -100 left out.

    To be used on other tokens than those it is judged on: `dataclasses.replace(head, temperature=fit.temperature)`.
    Raises ValueError as `counted_tokens` does, if the head is scaled already, if 1 is not within lowest..highest, or
    if logits are not finite.
    """
    if head.temperature != 1.0:
        raise ValueError(f"head.temperature is {head.temperature}; a temperature is fitted to an unscaled head, 1")
    if not 0 < lowest < 1 < highest < math.inf:
        raise ValueError(f"lowest and highest must be on either side of 1, not {lowest} and {highest}")
    tokens = counted_tokens(hidden, target, head)
    limits = (math.log(lowest), math.log(highest))
    low, high = limits
    seen: dict[float, _Point] = {}
    log_temperature, at_limit = 0.0, False
    while True:
        if len(seen) == _MOST_PASSES:
            raise ValueError(f"no minimum of the loss found in {_MOST_PASSES} passes; has the loss several?")
        point = seen[log_temperature] = _evaluate(tokens, head, math.exp(-log_temperature), chunk_bytes, dtype)
        if not math.isfinite(point.slope):
            raise ValueError("the loss has no finite slope: hidden or the head's weights are not finite")
        if point.slope > 0:  # a smaller inverse temperature is better: T must grow
            low = log_temperature
        else:
            high = log_temperature
        at_limit = low == high
        following = _next(point, low, high, limits, seen)
        if at_limit or abs(following - log_temperature) < _TOLERANCE:
            break
        log_temperature = following
    unscaled = seen[0.0]
    if point.loss > unscaled.loss:  # by rounding, where T is 1 within the tolerance
        log_temperature, point = 0.0, unscaled
    information = point.inverse**2 * point.curvature * tokens.count
    return TemperatureFit(
        temperature=math.exp(log_temperature),
        loss_nats=point.loss,
        unscaled_loss_nats=unscaled.loss,
        log_standard_error=1 / math.sqrt(information) if information > 0 else math.inf,
        at_limit=at_limit,
        passes=len(seen),
    )


def _next(point: _Point, low: float, high: float, limits: tuple[float, float], seen: dict[float, _Point]) -> float:
    """The next log T: Newton's where it lies in low..high, else a limit that was not tried or the bracket's middle."""
    here = -math.log(point.inverse)
    if point.curvature <= 0:
        wanted = here if point.slope == 0 else limits[1] if point.slope > 0 else limits[0]
    else:
        inverse = point.inverse - point.slope / point.curvature
        wanted = -math.log(inverse) if inverse > 0 else limits[1]
    if abs(wanted - here) < _TOLERANCE:
        return wanted
    halve = len(seen) >= _NEWTON_PASSES and len(seen) % 2 == 0
    if low < wanted < high and not halve:
        return wanted
    limit = limits[1] if point.slope > 0 else limits[0]
    return limit if limit in (low, high) and limit not in seen else (low + high) / 2


def _evaluate(tokens: Tokens, head: Head, inverse: float, chunk_bytes: int, dtype: torch.dtype) -> _Point:
    """One pass: three (n, V) tensors of `dtype` at once, sums over tokens in fp64."""
    sums = torch.zeros(3, dtype=torch.float64, device=tokens.hidden.device)
    with without_tf32():
        for part in token_chunks(tokens.count, head.vocab_size, chunk_bytes, dtype):
            s = capped_logits(tokens.hidden[part], head, dtype)  # (n, V)
            s -= s.amax(1, keepdim=True)  # changes neither loss nor derivatives
            s_target = s.gather(1, tokens.target[part, None])[:, 0].double()
            p = (s * inverse).exp_()
            total = p.sum(1).double()
            p *= s
            mean = p.sum(1).double() / total
            square = p.mul_(s).sum(1).double() / total
            loss = total.log() - inverse * s_target
            sums += torch.stack([loss.sum(), (mean - s_target).sum(), (square - mean**2).clamp(min=0).sum()])
    loss_mean, slope, curvature = (sums / tokens.count).tolist()
    return _Point(inverse, loss_mean, slope, curvature)
