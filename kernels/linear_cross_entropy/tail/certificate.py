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
from kernels.linear_cross_entropy.tail.groups import BLOCK_N, TokenGroups
from kernels.linear_cross_entropy.tail.model import TailModel
from kernels.linear_cross_entropy.tail.routing import Routing
from kernels.linear_cross_entropy.tail.tile_statistics import TileStatistics
from kernels.linear_cross_entropy.tail.upstream import Upstream
from kernels.linear_cross_entropy.tail.weight_first_order import Covariance, rows_of_term

# No bound lies below 7 ln(2/delta) / (3 S) of the sum of b_n^2; errors that cancel over a thousand tiles do.
SAMPLED_TOKENS = 2048
SAMPLED_CLASSES = 512
CHUNK = 64  # tokens whose logits are held at once
DELTA = 0.001  # the bound fails once in a thousand backwards


@dataclass(frozen=True)
class Certificate:
    """Relative to |dE| and |dC|."""

    input_bound: float  # of the method's error
    weight_estimate: float  # likewise
    arithmetic_error: float  # of dE, by the roundings of dz and of dE


@dataclass(frozen=True)
class Backward:
    """A backward that took the corrected path: what it saw and did."""

    problem: Problem
    statistics: Statistics
    tiles: TileStatistics
    model: TailModel
    groups: TokenGroups | None
    routing: Routing
    target: Tensor  # (N,) int64: positions in the vocabulary order
    given: Upstream
    first_order: Tensor | None  # (N, D) fp32: dE's first-order term, None without
    of_weight_term: tuple[Covariance, Tensor] | None  # what dC's is made of, with the tiles' masses (T,); None without
    gradients: Gradients

    def certificate(self) -> Certificate:
        """How wrong its gradients are."""
        generator = torch.Generator(self.problem.input.device).manual_seed(0)
        input_bound, arithmetic = self._input_errors(generator)
        return Certificate(input_bound, self._weight_estimate(generator), arithmetic)

    def _input_errors(self, generator: torch.Generator) -> tuple[float, float]:
        """The bound of the method's error of dE, and the arithmetic's."""
        gradient = self.gradients.input
        if gradient is None:
            return float("nan"), float("nan")
        bound = self._token_bounds()
        drawn = torch.multinomial(bound.square() + 1e-38, SAMPLED_TOKENS, replacement=True, generator=generator)
        error, rounding = self._sampled_errors(drawn)
        share = (error.norm(dim=1) / bound[drawn].clamp(min=1e-38)).double().square().clamp(max=1.0)
        log = math.log(2 / DELTA)
        upper = float(share.mean() + (2 * share.var() * log / SAMPLED_TOKENS).sqrt())
        upper += 7 * log / (3 * (SAMPLED_TOKENS - 1))
        total = float(bound.double().square().sum())
        norm = float(gradient.norm(dtype=torch.float64))
        # the sample is of the tokens with the largest bounds; their share of the norm stands for all
        unit = torch.finfo(gradient.dtype).eps / 2
        amplified = float(rounding.norm() / gradient[drawn].float().norm().clamp(min=1e-38))
        return math.sqrt(total * min(1.0, upper)) / max(norm, 1e-300), unit * (1 + amplified)

    def _token_bounds(self) -> Tensor:  # (N,)
        """b_n."""
        sigma = self._singular_values()[:, None]
        parts = []
        for tokens in self._all_tokens().split(2048):
            _, score, active = self._pairs(tokens)
            parts.append((torch.where(active, 0.0, score) * sigma).sum(0))
        bound = torch.cat(parts)
        return bound if self.first_order is None else bound + self.first_order.norm(dim=1)

    def _singular_values(self) -> Tensor:  # (T,) fp32
        """No smaller than the largest singular value of each tile's rows of C about the mean of their centres."""
        C, size, model = self.problem.weight, self.model.tile_classes, self.model
        V, D = C.shape
        centre = model.centre.float().mean(dim=0)  # c - q sums to 0: any point will do
        result = torch.empty(model.tiles, device=C.device)
        for first in range(0, model.tiles, 8):
            last = min(first + 8, model.tiles)
            places = torch.arange(first * size, last * size, device=C.device)
            classes = places.clamp(max=V - 1) if model.order is None else model.order[places.clamp(max=V - 1)]
            rows = torch.where((places < V)[:, None], C[classes].float() - centre[places // size], 0.0)
            rows = rows.view(last - first, size, D)
            gram = rows @ rows.transpose(1, 2)
            scale = gram.diagonal(dim1=1, dim2=2).sum(1).clamp(min=1e-30)  # or the fourth power leaves fp32's range
            squared = gram / scale[:, None, None]
            squared = squared @ squared
            fourth = (squared @ squared).flatten(1).norm(dim=1)
            result[first:last] = (fourth.sqrt().sqrt() * scale).sqrt()
        return result

    def _pairs(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(T, tokens): (g + l) m, a, and whether the pair is active; as route_kernel has them."""
        mass = (self.tiles.lse[:, tokens] - self.statistics.lse[tokens]).exp()
        if self.tiles.mass_slope is not None:
            mass = mass * self.tiles.mass_slope[:, tokens].float()
        scale = self.given.p_scale[tokens]
        weighted = torch.where(scale == 0, 0.0, mass * scale)
        score = weighted.abs() * self.tiles.residual[:, tokens].float()
        numbers = torch.arange(self.model.tiles, device=tokens.device)
        own = numbers[:, None] == (self.target[tokens] // self.model.tile_classes)[None, :]
        counted = (scale != 0) | (self.given.loss[tokens] != 0)
        return weighted, score, (score > self.routing.threshold[:, None]) | (own & counted[None, :])

    def _tail_difference(self, tokens: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Of tokens and classes (places in the order): p u less its model where inactive, 0 elsewhere; and p u."""
        problem, model = self.problem, self.model
        classes = places if model.order is None else model.order[places]
        z = problem.input[tokens].float() @ problem.weight[classes].float().t()
        if problem.bias is not None:
            z += problem.bias[classes].float()
        slope: Tensor | float = 1.0
        if problem.softcap:
            t = torch.tanh(z / problem.softcap)
            z, slope = t * problem.softcap, 1 - t * t
        scale = self.given.p_scale[tokens][:, None]
        exact = (z - self.statistics.lse[tokens][:, None]).exp() * slope * scale
        weighted, _, active = self._pairs(tokens)
        tile_of = places // model.tile_classes
        group = torch.zeros_like(tokens) if self.groups is None else self.groups.of_block[tokens // BLOCK_N].long()
        modelled = weighted[tile_of].t() * model.shape[group[:, None], places[None, :]]
        return torch.where(active[tile_of].t(), 0.0, exact - modelled), exact

    def _sampled_errors(self, drawn: Tensor) -> tuple[Tensor, Tensor]:  # (S, D) and (S,)
        """What modelling leaves out of dE of some tokens, and the norm of dz |C_v| that its rounding is relative to."""
        C = self.problem.weight
        places = torch.arange(len(C), device=drawn.device)
        order = places if self.model.order is None else self.model.order
        norms = torch.cat([rows.float().norm(dim=1) for rows in C.split(65536)])[order]
        errors, roundings = [], []
        for tokens in drawn.split(CHUNK):
            difference, exact = self._tail_difference(tokens, places)
            unordered = torch.empty_like(difference)
            unordered[:, order] = difference
            errors.append((unordered.to(C.dtype) @ C).float())
            hot = self.target[tokens].clamp(0, len(C) - 1)[:, None]
            exact.scatter_add_(1, hot, -self.given.loss[tokens][:, None] * (1 - self.problem.label_smoothing))
            roundings.append((exact * norms).norm(dim=1))
        error = torch.cat(errors)
        return error if self.first_order is None else error - self.first_order[drawn], torch.cat(roundings)

    def _weight_estimate(self, generator: torch.Generator) -> float:
        """|error of dC| / |dC| by the method, from a random sample of classes."""
        gradient = self.gradients.weight
        if gradient is None:
            return float("nan")
        V, D = gradient.shape
        count = min(SAMPLED_CLASSES, V)
        places = torch.randperm(V, generator=generator, device=gradient.device)[:count]
        error = torch.zeros(count, D, device=gradient.device)
        for tokens in self._all_tokens().split(4096):
            difference, _ = self._tail_difference(tokens, places)
            error += difference.t() @ self.problem.input[tokens].float()
        if self.of_weight_term is not None:
            error -= rows_of_term(self.problem, self.model, *self.of_weight_term, places)
        norm = float(gradient.norm(dtype=torch.float32))
        return float(error.norm()) * math.sqrt(V / count) / max(norm, 1e-300)

    def _all_tokens(self) -> Tensor:  # (N,)
        return torch.arange(self.problem.tokens, device=self.given.p_scale.device)
