"""The tail's first-order term: what a token's own direction does to the shape of its tail.

The model gives every token the shape q. To first order the true one is q_v (1 + (z_nv - z_v) - mean over the tile),
z_nv - z_v = C_v . (E_n - E_mean), which adds to dE_n
    w_n (E_n - E_mean) A_t,     A_t = sum_v q_v (C_v - centre_t)(C_v - centre_t)^T,     w_n its tail's mass.
One matrix A for all tiles, the mean of A_t by their tail mass, does nearly as well as a matrix each, and is a D x D
product away. It is summed over a sample of rows of C drawn by their tail mass, so that its cost does not depend on V.
"""

import torch
from torch import Tensor

from kernels.linear_cross_entropy.column_sum import column_sum
from kernels.linear_cross_entropy.problem import Problem
from kernels.linear_cross_entropy.products import add_product
from kernels.linear_cross_entropy.tail.elementwise import centred_rows, weighted_deviation
from kernels.linear_cross_entropy.tail.model import TailModel

SAMPLED_ROWS = 16384
CHUNK_ROWS = 8192  # of the sample at once


def within_tile_covariance(problem: Problem, model: TailModel, tile_mass: Tensor, samples: int) -> Tensor:
    """(D, D) fp32: the covariance of rows of C about their tile's centre, weighted by tail mass. tile_mass (T,)."""
    C = problem.weight
    V, D = C.shape
    class_mass = model.shape * tile_mass.abs().repeat_interleave(model.tile_classes)[:V]
    cumulated = class_mass.cumsum(0, dtype=torch.float64)  # a step of the sum would be lost in fp32
    points = (torch.arange(samples, device=C.device, dtype=torch.float64) + 0.5) * (cumulated[-1] / samples)
    places = torch.searchsorted(cumulated, points).clamp_(max=V - 1)  # (samples,): every class by its mass
    covariance = torch.empty(D, D, dtype=torch.float32, device=C.device)
    for i, chunk in enumerate(places.split(CHUNK_ROWS)):
        classes = chunk if model.order is None else model.order[chunk]
        rows = centred_rows(C, model.centre, classes, chunk // model.tile_classes)
        add_product(covariance, rows.t(), rows, first=i == 0)
    return covariance.div_(samples)


def add_first_order(
    problem: Problem,
    model: TailModel,
    token_mass: Tensor,  # (N,) fp32: w, in units that the dtype of E can hold
    tile_mass: Tensor,  # (T,) fp32
    accumulator: Tensor,  # (N, D) fp32, in and out: dE in the same units
    samples: int = SAMPLED_ROWS,
) -> None:
    E = problem.input
    covariance = within_tile_covariance(problem, model, tile_mass, samples).to(E.dtype)
    weight = token_mass.abs()
    mean = column_sum(E, weight) / weight.sum().clamp(min=1e-30)
    add_product(accumulator, weighted_deviation(E, mean, token_mass), covariance, first=False)
