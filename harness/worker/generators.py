"""One function for each synthetic kind of inputs; docs/inputs.md has the formulas and what they give.

Each takes the case, its bias (V,) or None and two generators on the device, and returns input (N, D) and linear_weight
(V, D) in the case's dtype and target (N,) int64. linear_weight is drawn from the first generator, what belongs to the
tokens from the second: with another second one it is another batch over the same head. A case's own draw gives the same
generator twice. Everything is drawn in blocks of a fixed size, so that the draw does
not depend on free memory and takes a few hundred MiB beside its results.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from harness.case import Case
from harness.worker.products import logits, slices, softcap_

_BLOCK_BYTES = 1 << 27  # of fp32 drawn at once
_NOISE = 0.3  # of every coordinate of input
_CANDIDATES = 24  # tokens that a context makes likely, drawn from the unigram
_SAMPLING_BYTES = 1 << 29  # of fp32 logits held at once while targets are sampled

Drawn = tuple[Tensor, Tensor, Tensor]


def _normal(rows: int, columns: int, std: float, case: Case, generator: Generator) -> Tensor:
    """(rows, columns) independent normal numbers in the case's dtype."""
    result = torch.empty(rows, columns, dtype=getattr(torch, case.dtype), device=generator.device)
    for part in slices(rows, 4 * columns, _BLOCK_BYTES):
        block = torch.randn(part.stop - part.start, columns, generator=generator, device=generator.device)
        result[part] = block.mul_(std).to(result.dtype)
    return result


def _any_targets(case: Case, generator: Generator) -> Tensor:
    return torch.randint(case.vocab_size, (case.tokens,), generator=generator, device=generator.device)


def _model_targets(
    case: Case, input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, generator: Generator
) -> Tensor:
    """(N,) targets sampled from softmax of the case's own logits, by inverting the cumulated probabilities."""
    draws = torch.rand(case.tokens, 1, generator=generator, device=generator.device)
    target = torch.empty(case.tokens, dtype=torch.int64, device=generator.device)
    for part in slices(case.tokens, 4 * case.vocab_size, _SAMPLING_BYTES):
        z = softcap_(logits(input[part], linear_weight, linear_bias, torch.float32), case.softcap)
        cumulated = z.softmax(1).cumsum(1)
        found = torch.searchsorted(cumulated, draws[part] * cumulated[:, -1:], right=True)
        target[part] = found[:, 0].clamp_(max=case.vocab_size - 1)
    return target


def gaussian(case: Case, _linear_bias: Tensor | None, generator: Generator, of_tokens: Generator) -> Drawn:
    """Independent logits of standard deviation `inputs.std`, 1 unless given; targets uniform."""
    std = 1.0 if case.inputs.std is None else case.inputs.std
    linear_weight = _normal(case.vocab_size, case.hidden_size, std / math.sqrt(case.hidden_size), case, generator)
    input = _normal(case.tokens, case.hidden_size, 1.0, case, of_tokens)
    return input, linear_weight, _any_targets(case, of_tokens)


def uniform(case: Case, _linear_bias: Tensor | None, generator: Generator, of_tokens: Generator) -> Drawn:
    """Logits of standard deviation 0.01: every probability is 1/V within a few per cent. Targets uniform."""
    linear_weight = _normal(case.vocab_size, case.hidden_size, 0.01 / math.sqrt(case.hidden_size), case, generator)
    input = _normal(case.tokens, case.hidden_size, 1.0, case, of_tokens)
    return input, linear_weight, _any_targets(case, of_tokens)


def _unit_rows(
    case: Case, generator: Generator, along: Tensor | None = None, coordinates: Tensor | None = None
) -> Tensor:
    """(V, D) random rows of norm 1 in the case's dtype.

    With `along` (D,) of norm 1 and `coordinates` (V,): random rows of norm 1 orthogonal to `along`, plus
    coordinates_v * along; rounded once, at the end.
    """
    dtype = getattr(torch, case.dtype)
    result = torch.empty(case.vocab_size, case.hidden_size, dtype=dtype, device=generator.device)
    for part in slices(case.vocab_size, 4 * case.hidden_size, _BLOCK_BYTES):
        rows = torch.randn(part.stop - part.start, case.hidden_size, generator=generator, device=generator.device)
        if along is not None:
            rows -= (rows @ along)[:, None] * along
        rows /= torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        if along is not None and coordinates is not None:
            rows += coordinates[part, None] * along
        result[part] = rows.to(dtype)
    return result


def confident(case: Case, _linear_bias: Tensor | None, generator: Generator, of_tokens: Generator) -> Drawn:
    """The target has 99 % of the mass."""
    return _peaked(case, 0.99, generator, of_tokens)


def smoothed(case: Case, _linear_bias: Tensor | None, generator: Generator, of_tokens: Generator) -> Drawn:
    """Where training with label smoothing ends: the target has 1 - beta + beta / V, the others beta / V each."""
    beta = case.label_smoothing or 0.1  # without smoothing there is no such optimum: take the usual one
    return _peaked(case, 1 - beta + beta / case.vocab_size, generator, of_tokens)


def _peaked(case: Case, target_probability: float, generator: Generator, of_tokens: Generator) -> Drawn:
    """E_n = s_n * C_y + 0.3 * normal with unit rows C_v, so that z_y is about s_n and the other logits about 0.

    s_n varies by 0.5: exactly at an optimum the gradient would be all rounding. The others' spread, s / sqrt(D) and
    0.3, adds half its variance to their log-sum-exp, for which s makes up; below D of about 64 it cannot.
    """
    others = (1 - target_probability) / (case.vocab_size - 1)
    peak = max(0.0, math.log(target_probability / others))
    peak += min((peak**2 / case.hidden_size + _NOISE**2) / 2, peak / 2)
    if case.softcap is not None:  # logits before it; what it cannot reach, it does not
        peak = case.softcap * math.atanh(min(peak / case.softcap, 0.95))
    linear_weight = _unit_rows(case, generator)
    target = _any_targets(case, of_tokens)
    input = torch.empty(case.tokens, case.hidden_size, dtype=linear_weight.dtype, device=generator.device)
    for part in slices(case.tokens, 4 * case.hidden_size, _BLOCK_BYTES):
        count = part.stop - part.start
        scale = torch.randn(count, 1, generator=of_tokens, device=generator.device).mul_(0.5).add_(peak)
        noise = torch.randn(count, case.hidden_size, generator=of_tokens, device=generator.device)
        input[part] = (scale * linear_weight[target[part]].float() + _NOISE * noise).to(input.dtype)
    return input, linear_weight, target


def _unigram(case: Case, generator: Generator) -> Tensor:
    """(V,) fp64 log-probabilities on the CPU: -1.05 ln(rank + 2.7), normalised.

    Ranks follow the token ids loosely, as a tokenizer's do: the order of ln(id + 1) + 1.5 * normal.
    """
    jitter = torch.randn(case.vocab_size, generator=generator, device=generator.device).cpu().double()
    ids = torch.arange(1, case.vocab_size + 1, dtype=torch.float64)
    rank = torch.empty(case.vocab_size, dtype=torch.float64)
    rank[(ids.log() + 1.5 * jitter).argsort(stable=True)] = ids - 1
    return (-1.05 * (rank + 2.7).log()).log_softmax(0)


def _zipf(case: Case, a: float, linear_bias: Tensor | None, generator: Generator, of_tokens: Generator) -> Drawn:
    """A trained model's shape: a Zipf unigram in one direction m that all rows share, and a peaked context.

    C_v = u_v + (pi_v / a) m, E_n = a m + sum_j w_nj u_(t_nj) + 0.3 normal: z_v is about pi_v, and about s_n minus a
    random walk for the candidates t_nj. Smaller a: a stronger shared direction, the same distribution.
    """
    device = generator.device
    pi = _unigram(case, generator)
    cumulated = (
        pi.exp().cumsum(0).to(device)
    )  # on the CPU, in order: cumsum of one long row is not reproducible on CUDA
    along = torch.randn(case.hidden_size, generator=generator, device=device)
    along /= torch.linalg.vector_norm(along)
    log_p = pi.float().to(device)
    linear_weight = _unit_rows(case, generator, along, log_p / a)

    input = torch.empty(case.tokens, case.hidden_size, dtype=linear_weight.dtype, device=device)
    for part in slices(case.tokens, 4 * _CANDIDATES * case.hidden_size, _BLOCK_BYTES):
        shape = (part.stop - part.start, _CANDIDATES)
        uniform_draws = torch.rand(shape, generator=of_tokens, device=device, dtype=torch.float64)
        candidates = torch.searchsorted(cumulated, uniform_draws, right=True).clamp_(max=case.vocab_size - 1)  # (n, 24)
        strength = torch.randn(shape[0], 1, generator=of_tokens, device=device).mul_(2).add_(2)  # s_n ~ N(2, 2**2)
        steps = torch.empty(shape, device=device).exponential_(1.5, generator=of_tokens)
        weights = (strength - steps.cumsum(1) - log_p[candidates]).clamp_(min=0)  # (n, 24)
        contexts = linear_weight[candidates].float()  # (n, 24, D): u + (pi / a) m, rounded as the weights are
        rows = torch.bmm(weights[:, None], contexts)[:, 0]
        rows += (a - (weights * log_p[candidates]).sum(1, keepdim=True) / a) * along  # takes the (pi / a) m out again
        rows += torch.randn(rows.shape, generator=of_tokens, device=device).mul_(_NOISE)
        input[part] = rows.to(input.dtype)
    return input, linear_weight, _model_targets(case, input, linear_weight, linear_bias, of_tokens)


def _zipf_of(a: float) -> Callable[[Case, Tensor | None, Generator, Generator], Drawn]:
    return lambda case, linear_bias, generator, of_tokens: _zipf(case, a, linear_bias, generator, of_tokens)


GENERATORS: dict[str, Callable[[Case, Tensor | None, Generator, Generator], Drawn]] = {
    "gaussian": gaussian,
    "uniform": uniform,
    "confident": confident,
    "smoothed": smoothed,
    "zipf-weak": _zipf_of(30.0),  # norm(mean C) / mean norm(C_v) is 0.43 at Gemma-2 size
    "zipf-medium": _zipf_of(12.0),  # 0.76
    "zipf-strong": _zipf_of(4.0),  # 0.96
}
