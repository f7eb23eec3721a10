"""One run of the tail-corrected operator on a CPU, in Triton's interpreter: what its tests there share.

Tiles are of 128 classes. At so few tokens nearly every tile holds some target's class, so a threshold of one's own is
what makes pairs inactive: -1 computes every pair, infinity those that hold a target alone.
"""

import functools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.linear_cross_entropy.problem import Gradients, Problem
from kernels.linear_cross_entropy.tail import operators
from kernels.linear_cross_entropy.tail.method import TailMethod
from kernels.linear_cross_entropy.tail.report import GradientStats
from kernels.linear_cross_entropy.vocabulary_order import balanced_tree, logit_features

TILE = 128
EVERY_PAIR, TARGETS_ALONE = -1.0, float("inf")
SAMPLED_ROWS = 24  # for the first-order term, each interpreted: two programs, the second of them ragged
ENOUGH_ROWS = 64  # where the term's own error must not be seen beside what it corrects


def use_method(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> None:
    """Sets fields of TailMethod that the operator leaves at their defaults."""
    made = functools.partial(TailMethod, **{"sampled_rows": SAMPLED_ROWS, **fields})
    monkeypatch.setattr(operators, "TailMethod", made)


@dataclass(frozen=True)
class Found:
    """What the operator returned, its gradients and its report."""

    outputs: tuple[Tensor, ...]
    gradients: Gradients
    stats: GradientStats


def tree(problem: Problem) -> Tensor:
    return balanced_tree(logit_features(problem.weight, problem.input), TILE)


def run(
    problem: Problem,
    upstream: Tensor,  # (N,)
    grad_lse: Tensor | None = None,
    *,
    order: Tensor | None = None,
    centres: Tensor | None = None,
    needs: tuple[bool, bool, bool] = (True, True, True),
    pack: bool = True,
    tolerance: float = 3e-2,
    choose: bool = False,
    tail: bool = True,
    first_order: bool = True,
    certify: bool = False,
) -> Found:
    operands = [problem.input, problem.weight, problem.bias]
    leaves = [None if t is None else t.clone().requires_grad_(n) for t, n in zip(operands, needs, strict=True)]
    stats = GradientStats.empty()
    outputs = operators.tail_forward(
        *leaves, problem.target, order, centres, stats.report if certify else None,
        problem.label_smoothing, problem.ignore_index, problem.softcap, pack, TILE,
        tolerance, choose, tail, first_order, certify,
    )  # fmt: skip
    given = upstream if grad_lse is None else (upstream, grad_lse)
    torch.autograd.backward(outputs[: 1 if grad_lse is None else 2], given)
    return Found(outputs, Gradients(*(None if t is None else t.grad for t in leaves)), stats)


def per_token(problem: Problem) -> Tensor:
    """(N,) upstream gradients as of reduction="none": different, some 0, some negative."""
    given = torch.linspace(-0.5, 2.0, problem.tokens)
    given[::7] = 0.0
    return given
