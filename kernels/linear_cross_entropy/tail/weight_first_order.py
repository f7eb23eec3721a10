"""The tail's first-order term in dC: what the spread of the tokens does to the shape of a class's tail.

To first order a token's shape is q_v (1 + d_nv - mean of d_n over the tile), d_nv = C_v . (E_n - mu), which adds
    q_v sum over inactive n of (g_n + l_n) m_nt E_n (E_n - mu)^T (C_v - centre_t)
to dC_v. One matrix for all tiles, the tokens' covariance K about mu by the mass of their tails, takes the sum's place:
    q_v M_t K (C_v - centre_t),     M_t = sum over inactive n of (g_n + l_n) m_nt
and K is taken for sigma^2 I plus what it has beyond that in R directions, two products of V D R. They are found by one
Nystroem sketch: with X the weighted deviations (K = X^T X), S = X Omega for a random Omega,
    W W^T = X^T S (S^T S)^-1 S^T X,   never more than K,   sigma^2 = (trace K - |W|^2) / (D - R).
Sum over v of dC_v stays what it is, for q_v (C_v - centre_t) sums to 0 in a tile.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.linear_cross_entropy.problem import Problem
from kernels.linear_cross_entropy.products import add_product, without_tf32
from kernels.linear_cross_entropy.tail.elementwise import weighted_deviation
from kernels.linear_cross_entropy.tail.model import TailModel

MOST_DIRECTIONS = 64


@dataclass(frozen=True)
class Covariance:
    """K = variance I + directions folded^T, of the tokens by the mass of their tails."""

    variance: Tensor  # () fp32: sigma^2
    directions: Tensor  # (D, R) in E's dtype: W
    folded: Tensor  # (D, R) in E's dtype: W (I - sigma^2 (W^T W)^-1), so that sigma^2 is not there twice


@dataclass(frozen=True)
class WeightTerm:
    """The term of one backward, for the kernel that writes dC."""

    covariance: Covariance
    classes: Tensor  # (V, R) in C's dtype: C folded, by class
    centres: Tensor  # (T, R) fp32: centre folded


def directions(hidden_size: int) -> int:
    """R: what a tensor core's product takes, and less than D."""
    return MOST_DIRECTIONS if hidden_size >= 2 * MOST_DIRECTIONS else 16


def token_covariance(problem: Problem, model: TailModel, tail: Tensor) -> Covariance:
    """K of the tokens that `tail` (T, N), in any unit and of either sign, weighs. Waits for nothing."""
    E, D = problem.input, problem.hidden_size
    R = directions(D)
    weight = torch.linalg.vector_norm(tail, ord=1, dim=0, dtype=torch.float32)
    weight = (weight / weight.sum().clamp(min=1e-30)).sqrt()
    X = weighted_deviation(E, model.typical, weight, None)
    sketch = X @ _omega(D, R, E.device).to(E.dtype)
    # Of the sketch as it was rounded: W W^T is then a projection of K, whatever the rounding.
    core = torch.empty(R, R, dtype=torch.float32, device=E.device)
    seen = torch.empty(D, R, dtype=torch.float32, device=E.device)
    add_product(core, sketch.t(), sketch, first=True)
    add_product(seen, X.t(), sketch, first=True)
    with without_tf32():
        W = torch.linalg.solve_triangular(_factor(core), seen.t(), upper=False).t()
        energy = torch.linalg.vector_norm(X, dtype=torch.float32).square()
        variance = (energy - W.square().sum()).clamp(min=0.0) / (D - R)
        unit = torch.eye(R, dtype=torch.float32, device=E.device)
        inverse = torch.linalg.solve_triangular(_factor(W.t() @ W), unit, upper=False)
        folded = W - variance * (W @ inverse.t() @ inverse)
    return Covariance(variance, W.to(E.dtype), folded.to(E.dtype))


def weight_term(problem: Problem, model: TailModel, covariance: Covariance) -> WeightTerm:
    """Of one group of tokens. V R numbers of scratch."""
    centres = torch.empty(model.tiles, covariance.folded.shape[1], dtype=torch.float32, device=problem.input.device)
    add_product(centres, model.centre[0], covariance.folded, first=True)
    return WeightTerm(covariance, problem.weight @ covariance.folded, centres)


def rows_of_term(
    problem: Problem,
    model: TailModel,
    covariance: Covariance,
    mass: Tensor,  # (T,) fp32: M
    places: Tensor,  # (n,) int64, of classes in the model's order
) -> Tensor:  # (n, D) fp32
    """What the term adds to some rows of dC, in plain torch."""
    tile = places // model.tile_classes
    classes = places if model.order is None else model.order[places]
    deviation = problem.weight[classes].float() - model.centre[0, tile].float()
    turned = deviation * covariance.variance
    turned += deviation @ covariance.folded.float() @ covariance.directions.float().t()
    return (model.shape[0, places] * mass[tile])[:, None] * turned


def _factor(matrix: Tensor) -> Tensor:
    """Cholesky's factor of a symmetric (R, R), lifted above its own rounding; 0 has one too."""
    lift = matrix.diagonal().sum() * 1e-5 + 1e-30
    lifted = (matrix + matrix.t()) / 2 + lift * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    factor: Tensor = torch.linalg.cholesky_ex(lifted).L  # the other cholesky waits for the device to know of failures
    return factor


@functools.lru_cache(maxsize=8)
def _omega(hidden_size: int, count: int, device: torch.device) -> Tensor:
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(hidden_size, count, generator=generator, dtype=torch.float32, device=device) / hidden_size**0.5
