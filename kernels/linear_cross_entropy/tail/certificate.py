"""How wrong the tail model was: a bound for dE, an estimate for dC, and what rounding adds. For `return_stats`.

Of every token. Where pair (n, t) is inactive, its rows of C enter dE_n with p - m q instead of p, so
    |error of dE_n| <= b_n = sum over inactive t of a_nt sigma_t (+ |first-order term|),
sigma_t the largest singular value of the tile's rows about their centre. sigma_t itself is bounded through its Gram
matrix G by |G^4|_F^(1/4): at most 1.4 times too large for 256 rows.
Of the batch. Errors of many tiles cancel where b_n adds them up, so the sum of b_n^2 is a few times too large. A sample
of tokens, drawn with probability proportional to b_n^2, is computed exactly: X = |error|^2 / b^2 lies in [0, 1] and has
mean |error|^2 / sum of b^2, which an empirical Bernstein bound (Maurer and Pontil, 2009, Theorem 4) puts below
    mean(X) + sqrt(2 var(X) ln(2/delta) / S) + 7 ln(2/delta) / (3 (S - 1))     with probability 1 - delta.
Of dC. A sample of classes is computed exactly; the error of their rows is scaled up. An estimate: nothing bounds what
the other rows do.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.linear_cross_entropy.problem import Gradients, Problem, Statistics
from kernels.linear_cross_entropy.tail.model import TailModel
from kernels.linear_cross_entropy.tail.routing import Routing
from kernels.linear_cross_entropy.tail.tile_statistics import TileStatistics

SAMPLED_TOKENS = 512
SAMPLED_CLASSES = 512
CHUNK = 64  # tokens whose logits are held at once
DELTA = 0.001  # the bound fails once in a thousand backwards


@dataclass(frozen=True)
class Certificate:
    """Relative to |dE| and |dC|."""

    input_bound: float  # of the method's error
    weight_estimate: float  # likewise
    arithmetic_error: float  # of dE, by the roundings of dz and of dE


def certify(
    problem: Problem,
    statistics: Statistics,
    tiles: TileStatistics,
    model: TailModel,
    routing: Routing,
    target: Tensor,  # (N,) positions in the vocabulary order
    p_scale: Tensor,  # (N,) fp32: g + l
    first_order: Tensor | None,  # (N, D) fp32: the first-order term, None without
    gradients: Gradients,
) -> Certificate:
    """Of a backward that took the corrected path."""
    generator = torch.Generator(problem.input.device).manual_seed(0)
    nan = float("nan")
    input_bound = arithmetic = weight_estimate = nan
    if gradients.input is not None:
        bound = token_bounds(tiles, model, routing, statistics, p_scale, target, singular_values(problem, model))
        if first_order is not None:
            bound = bound + first_order.norm(dim=1)
        norm = float(gradients.input.norm(dtype=torch.float64))
        total = float(bound.double().square().sum())
        drawn = torch.multinomial(bound.square() + 1e-38, SAMPLED_TOKENS, replacement=True, generator=generator)
        error, rounding = sampled_errors(problem, statistics, model, routing, tiles, target, p_scale, drawn)
        if first_order is not None:
            error = error - first_order[drawn]
        share = (error.norm(dim=1) / bound[drawn].clamp(min=1e-38)).double().square().clamp(max=1.0)
        log = math.log(2 / DELTA)
        upper = float(share.mean() + (2 * share.var() * log / SAMPLED_TOKENS).sqrt()) + 7 * log / (
            3 * (SAMPLED_TOKENS - 1)
        )
        input_bound = math.sqrt(total * min(1.0, upper)) / max(norm, 1e-300)
        # the sample is of the tokens with the largest bounds; their share of the norm stands for all
        unit = torch.finfo(problem.input.dtype).eps / 2
        sampled_norm = gradients.input[drawn].float().norm()
        arithmetic = unit * (1 + float(rounding.norm() / sampled_norm.clamp(min=1e-38)))
    if gradients.weight is not None:
        weight_estimate = sampled_class_error(
            problem, statistics, model, routing, tiles, target, p_scale, gradients.weight, generator
        )
    return Certificate(input_bound, weight_estimate, arithmetic)


def singular_values(problem: Problem, model: TailModel) -> Tensor:  # (T,) fp32
    """No smaller than the largest singular value of each tile's centred rows of C."""
    C, size = problem.weight, model.tile_classes
    V, D = C.shape
    result = torch.empty(model.tiles, device=C.device)
    for first in range(0, model.tiles, 8):
        last = min(first + 8, model.tiles)
        places = torch.arange(first * size, last * size, device=C.device)
        inside = (places < V)[:, None]
        classes = places.clamp(max=V - 1) if model.order is None else model.order[places.clamp(max=V - 1)]
        rows = torch.where(inside, C[classes].float() - model.centre[places // size].float(), 0.0)
        rows = rows.view(last - first, size, D)
        gram = rows @ rows.transpose(1, 2)
        scale = gram.diagonal(dim1=1, dim2=2).sum(1).clamp(min=1e-30)  # or the fourth power leaves fp32's range
        squared = _fourth(gram / scale[:, None, None])
        result[first:last] = (squared.flatten(1).norm(dim=1).sqrt().sqrt() * scale).sqrt()
    return result


def _fourth(matrices: Tensor) -> Tensor:
    square = matrices @ matrices
    return square @ square


def _pairs(
    tiles: TileStatistics, routing: Routing, statistics: Statistics, p_scale: Tensor, target: Tensor, model: TailModel,
    tokens: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(T, tokens): (g + l) m, a, and whether the pair is active; as route_kernel has them."""
    mass = (tiles.lse[:, tokens] - statistics.lse[tokens]).exp()
    if tiles.mass_slope is not None:
        mass = mass * tiles.mass_slope[:, tokens].float()
    scale = p_scale[tokens]
    weighted = torch.where(scale == 0, 0.0, mass * scale)
    score = weighted.abs() * tiles.residual[:, tokens].float()
    active = score > routing.threshold[:, None]
    numbers = torch.arange(model.tiles, device=tokens.device)
    active |= (numbers[:, None] == (target[tokens] // model.tile_classes)[None, :]) & (scale != 0)[None, :]
    return weighted, score, active


def token_bounds(
    tiles: TileStatistics, model: TailModel, routing: Routing, statistics: Statistics, p_scale: Tensor, target: Tensor,
    sigma: Tensor,
) -> Tensor:  # (N,)  # fmt: skip
    """b_n without the first-order term."""
    parts = []
    for tokens in torch.arange(len(p_scale), device=p_scale.device).split(2048):
        _, score, active = _pairs(tiles, routing, statistics, p_scale, target, model, tokens)
        parts.append((torch.where(active, 0.0, score) * sigma[:, None]).sum(0))
    return torch.cat(parts)


def _tail_difference(
    problem: Problem, statistics: Statistics, model: TailModel, routing: Routing, tiles: TileStatistics,
    target: Tensor, p_scale: Tensor, tokens: Tensor, places: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Of some tokens and classes (places in the order): p u less its model where inactive, 0 elsewhere; and p u."""
    classes = places if model.order is None else model.order[places]
    z = problem.input[tokens].float() @ problem.weight[classes].float().t()
    if problem.bias is not None:
        z += problem.bias[classes].float()
    slope: Tensor | float = 1.0
    if problem.softcap:
        t = torch.tanh(z / problem.softcap)
        z, slope = t * problem.softcap, 1 - t * t
    exact = (z - statistics.lse[tokens][:, None]).exp() * slope * p_scale[tokens][:, None]
    weighted, _, active = _pairs(tiles, routing, statistics, p_scale, target, model, tokens)
    tile_of = places // model.tile_classes
    modelled = weighted[tile_of].t() * model.shape[places]
    return torch.where(active[tile_of].t(), 0.0, exact - modelled), exact


def sampled_errors(
    problem: Problem, statistics: Statistics, model: TailModel, routing: Routing, tiles: TileStatistics,
    target: Tensor, p_scale: Tensor, drawn: Tensor,
) -> tuple[Tensor, Tensor]:  # (S, D) and (S,)  # fmt: skip
    """What modelling leaves out of dE of some tokens, and the norm of dz |C_v| that its rounding is relative to."""
    places = torch.arange(problem.vocab_size, device=drawn.device)
    order = places if model.order is None else model.order
    norms = torch.cat([rows.float().norm(dim=1) for rows in problem.weight.split(65536)])[order]
    errors, roundings = [], []
    for tokens in drawn.split(CHUNK):
        difference, exact = _tail_difference(
            problem, statistics, model, routing, tiles, target, p_scale, tokens, places
        )
        unordered = torch.empty_like(difference)
        unordered[:, order] = difference
        errors.append((unordered.to(problem.weight.dtype) @ problem.weight).float())
        hot = target[tokens].clamp(0, problem.vocab_size - 1)[:, None]
        exact.scatter_add_(1, hot, -p_scale[tokens][:, None] * (1 - problem.label_smoothing))
        roundings.append((exact * norms).norm(dim=1))
    return torch.cat(errors), torch.cat(roundings)


def sampled_class_error(
    problem: Problem, statistics: Statistics, model: TailModel, routing: Routing, tiles: TileStatistics,
    target: Tensor, p_scale: Tensor, grad_weight: Tensor, generator: torch.Generator,
) -> float:  # fmt: skip
    """|error of dC| / |dC| by the method, from a random sample of classes."""
    V = problem.vocab_size
    count = min(SAMPLED_CLASSES, V)
    places = torch.randperm(V, generator=generator, device=grad_weight.device)[:count]
    error = torch.zeros(count, problem.hidden_size, device=grad_weight.device)
    for tokens in torch.arange(problem.tokens, device=grad_weight.device).split(4096):
        difference, _ = _tail_difference(problem, statistics, model, routing, tiles, target, p_scale, tokens, places)
        error += difference.t() @ problem.input[tokens].float()
    norm = float(grad_weight.norm(dtype=torch.float32))
    return float(error.norm()) * math.sqrt(V / count) / max(norm, 1e-300)
