"""How many pairs a vocabulary order would leave to compute, from a sample of tokens."""

from dataclasses import replace

import torch
from torch import Tensor

from kernels.linear_cross_entropy.problem import Problem
from kernels.linear_cross_entropy.tail.blocks import gather_options
from kernels.linear_cross_entropy.tail.forward import on_device, recalled, remember
from kernels.linear_cross_entropy.tail.method import TailMethod
from kernels.linear_cross_entropy.tail.routing import route
from kernels.linear_cross_entropy.tail.tile_statistics import positions
from kernels.linear_cross_entropy.tail.upstream import upstream

SAMPLE = 2048  # tokens: a quarter of a forward of 8192


def active_fraction(problem: Problem, order: Tensor | None, tile_classes: int, tolerance: float) -> float:
    """Share of pairs that the gradient of the mean loss would compute under the order; the host waits for it."""
    step = max(1, problem.tokens // SAMPLE)
    problem = replace(problem, input=problem.input[::step].contiguous(), target=problem.target[::step].contiguous())
    statistics, _, remembered = remember(problem, False, order, None, tile_classes)
    model, tiles = recalled(remembered, problem.tokens, order, tile_classes)
    with on_device(problem.input.device):
        ones = torch.ones(problem.tokens, dtype=torch.float32, device=problem.input.device)
        given = upstream(problem, statistics, ones, torch.zeros_like(ones))
        target = positions(problem, order)
        rows = gather_options(problem.tokens).rows
        routing = route(problem, statistics, tiles, model, target, given, TailMethod(tolerance), rows)
        return int(routing.counts.sum()) / (model.tiles * problem.tokens)
