"""dC's first-order term on a GPU: what it is for, and that its certificate knows of it."""

import contextlib
import functools

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from kernels import linear_cross_entropy
from kernels.linear_cross_entropy.problem import Problem
from kernels.linear_cross_entropy.tail import operators, side_stream
from kernels.linear_cross_entropy.tail.method import TailMethod
from kernels.linear_cross_entropy.tail.report import GradientStats
from tests.linear_cross_entropy import cases
from tests.linear_cross_entropy.cases import error, mean_upstream, oracle

N, D, V = 4096, 512, 32768


def found(problem: Problem, on: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, GradientStats]:
    """dC of the mean loss, coarse, so that the method's error is seen beside rounding."""
    monkeypatch.setattr(operators, "TailMethod", functools.partial(TailMethod, weight_first_order=on))
    leaves = [t.detach().requires_grad_() for t in (problem.input, problem.weight)]
    loss, stats = linear_cross_entropy(
        *leaves, problem.target, label_smoothing=problem.label_smoothing, gradient="corrected",
        gradient_tolerance=3e-2, return_stats=True,
    )  # fmt: skip
    loss.backward()
    return leaves[1].grad, stats


def along_a_few_directions(generator: torch.Generator) -> cases.Drawn:
    """Flat logits of tokens that differ along four directions, as trained ones do, beside noise."""
    normal = functools.partial(torch.randn, generator=generator, device="cuda")
    tokens = 2 * normal(N, 4) @ torch.linalg.qr(normal(D, 4)).Q.t() + 0.2 * normal(N, D)
    target = torch.randint(0, 2000, (N,), generator=generator, device="cuda")
    return tokens, 0.08 * normal(V, D) + 0.1 * normal(D), target


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["zipf", "gaussian", "directed"])
def test_rows_that_no_target_touches_are_better_off(kind: str, beta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    if kind == "directed":
        tensors = along_a_few_directions(generator)
    else:
        parameters = {"strength": 12.0} if kind == "zipf" else {"logit_std": 0.5}
        tensors = cases.KINDS[kind](N, D, V, generator, **parameters)
    problem = Problem(tensors[0].bfloat16(), tensors[1].bfloat16(), None, tensors[2], beta, -100, 0.0)
    exact = oracle(problem, mean_upstream(problem, scale=1.0))[1].weight
    cold = torch.ones(V, dtype=torch.bool, device="cuda")
    cold[problem.target] = False
    medians, errors = [], []
    for on in (True, False):
        weight, stats = found(problem, on, monkeypatch)
        assert stats.path == "corrected" and bool(weight.isfinite().all())
        wrong = (weight.double() - exact).norm(dim=1) / exact.norm(dim=1)
        medians.append(float(wrong[cold].median()))
        errors.append(error(weight, exact))
        print(kind, beta, on, medians[-1], float(wrong[cold].quantile(0.99)), errors[-1], stats)
        method_error = errors[-1] ** 2 - stats.arithmetic_error**2
        if method_error > 4 * stats.arithmetic_error**2:  # not drowned in rounding
            assert 0.4 <= stats.weight_estimate / method_error**0.5 <= 2.5
    assert medians[0] < 0.9 * medians[1]
    assert errors[0] < 1.02 * errors[1]


def test_the_sketch_beside_other_work_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    tensors = along_a_few_directions(generator)
    problem = Problem(tensors[0].bfloat16(), tensors[1].bfloat16(), None, tensors[2], 0.1, -100, 0.0)
    beside = [found(problem, True, monkeypatch)[0] for _ in range(5)]
    monkeypatch.setattr(side_stream.Fork, "beside", lambda self: contextlib.nullcontext())
    in_line = found(problem, True, monkeypatch)[0]
    assert all(torch.equal(in_line, one) for one in beside)
