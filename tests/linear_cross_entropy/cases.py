"""Inputs of several regimes, the fp64 oracle and eager arithmetic: what every test of the kernels compares with.

Random data hides most mistakes (nothing to filter in uniform logits, everything in others), so every kind here
is a regime a head really sees: trained-like, over-confident, at the label-smoothing optimum, uniform, Gaussian.
"""

# ruff: noqa: N803, N806 - N, D, V, E and C are the names of the glossary

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from kernels.linear_cross_entropy import reference
from kernels.linear_cross_entropy.problem import Gradients, Method, Needs, Problem, Statistics

Drawn = tuple[Tensor, Tensor, Tensor]  # input (N, D), linear_weight (V, D) in fp32; target (N,)


def gaussian(N: int, D: int, V: int, generator: torch.Generator, logit_std: float = 1.0) -> Drawn:
    """Independent logits of the given standard deviation; targets without any relation to them."""
    device = generator.device
    input = torch.randn(N, D, generator=generator, device=device)
    weight = torch.randn(V, D, generator=generator, device=device).mul_(logit_std / math.sqrt(D))
    return input, weight, torch.randint(V, (N,), generator=generator, device=device)


def zipf(N: int, D: int, V: int, generator: torch.Generator, strength: float = 12.0) -> Drawn:
    """A trained model's shape: Zipf unigram in a direction all rows share, a peaked context for each token."""
    device = generator.device
    normal = lambda *shape: torch.randn(shape, generator=generator, device=device)  # noqa: E731
    m = torch.nn.functional.normalize(normal(D), dim=0)
    weight = normal(V, D)
    weight.sub_((weight @ m)[:, None] * m)
    weight.div_(weight.norm(dim=1, keepdim=True))
    rank = (torch.arange(1, V + 1, device=device).log() + 1.5 * normal(V)).argsort().argsort()
    unigram = (-1.05 * (rank + 2.7).log()).log_softmax(0)
    candidates = torch.multinomial(unigram.exp(), N * 24, replacement=True, generator=generator).view(N, 24)
    steps = torch.empty(N, 24, device=device).exponential_(1.5, generator=generator)
    peaks = (2 + 2 * normal(N, 1) - steps.cumsum(1) - unigram[candidates]).clamp_(min=0)
    input = strength * m + 0.3 * normal(N, D)
    for j in range(24):
        input.addcmul_(peaks[:, j, None], weight[candidates[:, j]])
    weight.add_((unigram / strength)[:, None] * m)
    return input, weight, sampled(input, weight, generator)


def confident(N: int, D: int, V: int, generator: torch.Generator) -> Drawn:
    """Almost all of the mass on one class, which is the target nine times in ten."""
    input, weight, target = _aligned(N, D, V, generator, 30.0)
    wrong = torch.rand(N, generator=generator, device=generator.device) < 0.1
    return input, weight, torch.where(wrong, (target + 1) % V, target)


def smoothed(N: int, D: int, V: int, generator: torch.Generator, beta: float = 0.1) -> Drawn:
    """At the label-smoothing optimum: p_y = 1 - beta, the rest about beta / V each. Gradients nearly vanish."""
    return _aligned(N, D, V, generator, math.log((1 - beta) * V / beta))


def uniform(N: int, D: int, V: int, generator: torch.Generator) -> Drawn:
    """Every probability about 1 / V, as at initialisation."""
    return gaussian(N, D, V, generator, logit_std=1e-2)


def _aligned(N: int, D: int, V: int, generator: torch.Generator, logit: float) -> Drawn:
    device = generator.device
    weight = torch.nn.functional.normalize(torch.randn(V, D, generator=generator, device=device), dim=1)
    target = torch.randint(V, (N,), generator=generator, device=device)
    return weight[target] * logit, weight, target


def sampled(input: Tensor, weight: Tensor, generator: torch.Generator) -> Tensor:
    """Targets drawn from the model itself."""
    parts = [(rows @ weight.t()).softmax(dim=1) for rows in input.split(1024)]
    return torch.cat([torch.multinomial(p, 1, generator=generator)[:, 0] for p in parts])


KINDS: dict[str, Callable[..., Drawn]] = {
    "gaussian": gaussian,
    "zipf": zipf,
    "confident": confident,
    "smoothed": smoothed,
    "uniform": uniform,
}


def make_problem(
    kind: str,
    N: int,
    D: int,
    V: int,
    *,
    dtype: torch.dtype = torch.float32,
    beta: float = 0.0,
    softcap: float | None = None,
    bias: bool = False,
    ignored: int = 0,
    seed: int = 0,
    device: str = "cpu",
) -> Problem:
    """A case, drawn in fp32 and rounded once to its dtype."""
    generator = torch.Generator(device).manual_seed(seed)
    input, weight, target = KINDS[kind](N, D, V, generator)
    target[torch.randperm(N, generator=generator, device=device)[:ignored]] = -100
    linear_bias = 0.1 * torch.randn(V, generator=generator, device=device) if bias else None
    narrow = [None if t is None else t.to(dtype) for t in (input, weight, linear_bias)]
    return Problem(*narrow, target, beta, -100, softcap or 0.0)


def mean_upstream(problem: Problem, scale: float = 0.7) -> Tensor:
    """(N,) gradient of the per-token losses of `scale` * the mean loss. Not 1: who forgets it is found out."""
    counted = problem.counted.float()
    return counted * (scale / counted.sum().clamp(min=1))


def oracle(
    problem: Problem,
    upstream: Tensor,
    grad_lse: Tensor | None = None,
    method: Method | None = None,  # None: nothing is filtered
    **filter_options: object,  # of reference.gradients: blocks, order
) -> tuple[Statistics, Gradients]:
    """The same rounded inputs, in fp64 throughout."""
    bias = None if problem.bias is None else problem.bias.double()
    wide = replace(problem, input=problem.input.double(), weight=problem.weight.double(), bias=bias)
    statistics = reference.statistics(wide)
    grad_lse = torch.zeros_like(upstream) if grad_lse is None else grad_lse
    needs = Needs(True, True, problem.bias is not None)
    method = method or Method()
    return statistics, reference.gradients(wide, statistics, upstream, grad_lse, needs, method, **filter_options)


def eager_arithmetic(problem: Problem, upstream: Tensor) -> Gradients:
    """dE and dC as torch eager computes them in the operands' dtype, a chunk of tokens at a time.

    Logits rounded to the dtype, fp32 softmax, dz rounded to the dtype, products accumulated in fp32 and rounded once.
    """
    E, C, V, beta = problem.input, problem.weight, problem.vocab_size, problem.label_smoothing
    grad_input, grad_weight = torch.empty_like(E), C.new_zeros(C.shape, dtype=torch.float32)
    for start in range(0, problem.tokens, 1024):
        rows = slice(start, min(start + 1024, problem.tokens))
        z = torch.nn.functional.linear(E[rows], C, problem.bias).float()
        slope: Tensor | float = 1.0
        if problem.softcap:
            t = torch.tanh(z / problem.softcap)
            z, slope = t * problem.softcap, 1 - t * t
        dz = z.softmax(dim=1).sub_(beta / V)
        y = problem.target[rows].clamp(0, V - 1)[:, None]
        dz.scatter_add_(1, y, torch.full_like(dz[:, :1], beta - 1))
        dz = (dz * slope * upstream[rows, None]).to(E.dtype)
        grad_input[rows] = dz @ C
        if E.is_cuda and E.dtype != torch.float32:
            torch.addmm(grad_weight, dz.t(), E[rows], out_dtype=torch.float32, out=grad_weight)
        else:
            grad_weight += dz.t().float() @ E[rows].float()
    return Gradients(grad_input, grad_weight.to(C.dtype), None)


def error(value: Tensor, exact: Tensor) -> float:
    """||value - exact|| / ||exact||, a chunk of rows at a time in fp64."""
    pairs = list(zip(value.split(16384), exact.split(16384), strict=True))
    difference = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    return math.sqrt(difference / max(sum(float(b.double().square().sum()) for _, b in pairs), 1e-300))


def excess(value: Tensor, eager: Tensor, exact: Tensor, dropped: Tensor | None = None) -> float:
    """Error over eager's error, both floored at the rounding of the dtype they are returned in.

    dropped: the part of `exact` that a filter leaves out on purpose.
    """
    floor = torch.finfo(value.dtype).eps / 4  # of a result rounded once: eps / (2 * sqrt(3))
    complete = value if dropped is None else value.double() + dropped
    return max(error(complete, exact), floor) / max(error(eager, exact), floor)
