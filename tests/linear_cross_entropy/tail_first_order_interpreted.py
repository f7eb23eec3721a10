"""dC's first-order term, in Triton's interpreter; collected by test_tail_first_order_interpreted.py."""

# ruff: noqa: N806 - N, V, D and E are the names of the glossary

import functools
import math
import os
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 before triton is imported", allow_module_level=True)

from kernels.linear_cross_entropy.problem import Problem
from kernels.linear_cross_entropy.tail import gradients as steps
from kernels.linear_cross_entropy.tail import weight_first_order
from kernels.linear_cross_entropy.tail.elementwise import weighted_deviation
from kernels.linear_cross_entropy.tail.model import TailModel
from kernels.linear_cross_entropy.tail.weight_first_order import (
    Covariance,
    CovarianceSketch,
    WeightTerm,
    directions_kernel,
    rows_of_term,
    sketch_covariance,
    weight_term,
)
from tests.linear_cross_entropy.cases import error, make_problem, mean_upstream, oracle
from tests.linear_cross_entropy.tail_runs import TARGETS_ALONE, Found, per_token, run, tree, use_method

N, D, V = 120, 64, 700
Method = Callable[..., None]


@pytest.fixture(autouse=True)
def method(monkeypatch: pytest.MonkeyPatch) -> Method:
    use_method(monkeypatch)
    return functools.partial(use_method, monkeypatch)


def with_and_without(problem: Problem, upstream: Tensor, method: Method, **options: object) -> tuple[Found, Found]:
    """Every pair but the targets' is modelled."""
    found = []
    for on in (True, False):
        method(threshold=TARGETS_ALONE, weight_first_order=on)
        found.append(run(problem, upstream, **options))
    return found[0], found[1]


def along_a_few_directions(problem: Problem, count: int = 4, strength: float = 2.0) -> Problem:
    """Flat logits whose tokens differ along `count` directions, as trained ones do, beside noise."""
    generator = torch.Generator().manual_seed(3)
    directions = torch.linalg.qr(torch.randn(D, count, generator=generator)).Q
    tokens = torch.randn(N, count, generator=generator) * strength @ directions.t()
    tokens += 0.3 * torch.randn(N, D, generator=generator)
    weight = 0.15 * torch.randn(V, D, generator=generator) + 0.3 * torch.randn(D, generator=generator)
    target = torch.randint(0, 40, (N,), generator=generator)  # nearly all classes are cold
    return replace(problem, input=tokens, weight=weight, target=target)


def logit_variance(problem: Problem, model: TailModel, covariance: Covariance) -> Tensor:  # (T,)
    """Of a token's logits about the typical token's, in each tile, by the tile's shape."""
    K = covariance.variance * torch.eye(D)
    if covariance.directions is not None:
        K = K + covariance.folded @ covariance.directions.t()
    C, shape = problem.weight if model.order is None else problem.weight[model.order], model.shape[0]
    found = []
    for q, rows in zip(shape.split(model.tile_classes), C.split(model.tile_classes), strict=True):
        deviation = rows - q @ rows
        found.append((q * ((deviation @ K) * deviation).sum(1)).sum())
    return torch.stack(found).detach()


@pytest.mark.parametrize(
    ("settings", "ordered", "in_directions"),
    [
        (dict(), False, True),
        (dict(beta=0.1, bias=True, ignored=30), True, True),
        (dict(beta=0.1, bias=True, ignored=30), True, False),
        (dict(ignored=3), True, True),
    ],
    ids=str,
)
def test_the_kernel_adds_what_plain_torch_does(
    settings: dict, ordered: bool, in_directions: bool, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ragged last tile, an order, rows that are packed away, upstream gradients of both signs."""
    problem = make_problem("zipf", N, D, V, **settings)
    order = tree(problem) if ordered else None
    monkeypatch.setattr(weight_first_order, "LEAST_EXPLAINED", 0.0 if in_directions else 2.0)
    seen: list[tuple] = []

    def watch(*given: object) -> CovarianceSketch:
        seen.append((*given[:2], sketch_covariance(*given)))
        return seen[-1][2]

    masses = []

    def damp(*given: object) -> WeightTerm:
        made = weight_term(*given)
        masses.append((given[3], made.masses))
        return made

    monkeypatch.setattr(steps, "sketch_covariance", watch)
    monkeypatch.setattr(steps, "weight_term", damp)
    on, off = with_and_without(problem, per_token(problem), method, order=order)
    ((packed, model, sketch),) = seen
    covariance = sketch.covariance()
    assert (covariance.directions is not None) == in_directions
    ((mass, damped),) = masses
    assert error(damped, (mass / (1 + (logit_variance(packed, model, covariance) / 2) ** 2).sqrt()).double()) < 1e-3
    places = torch.arange(V)
    term = rows_of_term(packed, model, covariance, damped, places)
    assert float(term.norm()) > 0.01 * float(off.gradients.weight.norm())
    added = torch.empty_like(term)
    added[places] = (on.gradients.weight - off.gradients.weight)[places if order is None else order]
    assert error(added, term.double()) < 1e-4
    # sums over the classes stay what they are
    scale = float(off.gradients.weight.norm())
    assert float(added.sum(0).norm()) < 1e-5 * scale
    for name in ("input", "bias"):
        if getattr(off.gradients, name) is not None:
            assert torch.equal(getattr(on.gradients, name), getattr(off.gradients, name))


def directed(sketch: CovarianceSketch) -> Covariance:
    """Whatever its directions are worth."""
    return Covariance(sketch.spread[0], sketch.directions, sketch.folded, sketch.fold)


def test_the_covariance_is_that_of_the_tokens() -> None:
    """Exact where R directions are all there is; else right in trace, and never more than K in the sketch's part."""
    problem = along_a_few_directions(make_problem("gaussian", N, D, V))
    tail = torch.rand(6, N)
    typical = problem.input.mean(0, keepdim=True)
    model = type("Model", (), {"typical": typical})
    for noise in (False, True):
        if not noise:
            left = torch.linalg.svd(problem.input - typical, full_matrices=False)
            few = left.U[:, :8] * left.S[:8] @ left.Vh[:8] + typical
            given = replace(problem, input=few)
        else:
            given = problem
        found = directed(sketch_covariance(given, model, tail))
        deviation = given.input - typical
        weight = tail.sum(0) / tail.sum()
        K = (deviation * weight[:, None]).t() @ deviation
        mine = found.variance * torch.eye(D) + found.folded @ found.directions.t()
        assert error(mine, K.double()) < (
            0.15 if noise else 2e-3
        )  # noise of 120 tokens is not the same in all directions
        assert float(mine.trace()) == pytest.approx(float(K.trace()), rel=1e-3)
        assert (
            float(torch.linalg.eigvalsh(K.double() - (found.directions @ found.directions.t()).double()).min()) > -1e-3
        )


def test_no_tails_no_term() -> None:
    problem = make_problem("gaussian", N, D, V)
    model = type("Model", (), {"typical": problem.input.mean(0, keepdim=True)})
    sketch = sketch_covariance(problem, model, torch.zeros(6, N))
    assert float(sketch.spread.abs().max()) == 0 and float(sketch.folded.abs().max()) == 0
    assert float(sketch.covariance().variance) == 0


def cold_error(found: Found, exact: Tensor, problem: Problem) -> Tensor:
    cold = torch.ones(V, dtype=torch.bool)
    cold[problem.target] = False
    return ((found.gradients.weight.double() - exact).norm(dim=1) / exact.norm(dim=1))[cold]


def test_rows_that_no_target_touches_are_better_off(method: Method) -> None:
    problem = along_a_few_directions(make_problem("gaussian", N, D, V))
    upstream = mean_upstream(problem)
    exact = oracle(problem, upstream)[1].weight
    on, off = with_and_without(problem, upstream, method, certify=True)
    better, worse = cold_error(on, exact, problem), cold_error(off, exact, problem)
    assert float(better.median()) < 0.3 * float(worse.median())  # 0.17 after 0.90
    assert float(better.quantile(0.99)) < 0.5 * float(worse.quantile(0.99))  # 0.46 after 1.45
    assert error(on.gradients.weight, exact) < error(off.gradients.weight, exact)
    for found in (on, off):  # what is left is what the certificate says is left
        assert 0.4 < found.stats.weight_estimate / error(found.gradients.weight, exact) < 2.5


@pytest.mark.parametrize("settings", [dict(softcap=5.0), dict(groups=True)], ids=str)
def test_a_softcap_and_groups_have_none(settings: dict, method: Method) -> None:
    grouped = settings.pop("groups", False)
    problem = make_problem("zipf", N, D, V, beta=0.1, **settings)
    centres = problem.input[:2].float().contiguous() if grouped else None
    on, off = with_and_without(problem, mean_upstream(problem), method, centres=centres)
    assert torch.equal(on.gradients.weight, off.gradients.weight)


@pytest.mark.parametrize("D", [8, 16, 32])
def test_tokens_too_far_apart_for_a_first_order(D: int, method: Method) -> None:  # noqa: N803
    """Where there are few dimensions, too, and no more of them than directions. Undamped, 40 % worse than without."""
    problem = make_problem("zipf", 256, D, 2048, beta=0.1)
    upstream = mean_upstream(problem)
    exact = oracle(problem, upstream)[1].weight
    errors = []
    for on in (True, False):
        method(weight_first_order=on)
        errors.append(error(run(problem, upstream, order=tree(problem)).gradients.weight, exact))
    assert errors[0] < 1.02 * errors[1]


def test_fewer_directions_than_dimensions() -> None:
    assert weight_first_order.most_directions(40) == 16 and weight_first_order.most_directions(2304) == 32


def test_directions_are_taken_where_tokens_have_some() -> None:
    """Else K is a multiple of I, of the same trace."""
    gaussian = make_problem("gaussian", N, D, V)
    directed = along_a_few_directions(gaussian)
    many = replace(gaussian, input=torch.randn(4096, D, generator=torch.Generator().manual_seed(0)))
    for problem, taken in ((directed, True), (many, False)):
        model = type("Model", (), {"typical": problem.input.mean(0, keepdim=True)})
        found = sketch_covariance(problem, model, torch.ones(6, len(problem.input))).covariance()
        assert (found.directions is not None) == taken
        if not taken:
            trace = (problem.input - model.typical).square().sum(1).mean()
            assert float(found.variance) * D == pytest.approx(float(trace), rel=1e-4)


@pytest.mark.parametrize("condition", [1.0, 1e4])
@pytest.mark.parametrize("rows", [40, 200])
def test_directions_are_whitened_and_folded(condition: float, rows: int) -> None:
    """By Cholesky factors' inverses; `rows` in one block and in several, ragged."""
    size = 32
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator)).Q
    square = basis * torch.logspace(0, -math.log10(condition), size) @ basis.t()
    seen = torch.randn(rows, size, generator=generator) @ torch.linalg.cholesky(square).t()
    found, folded, fold = torch.empty_like(seen), torch.empty_like(seen), torch.empty_like(square)
    spread = torch.full((3,), float("nan"))

    def lifted(matrix: Tensor) -> Tensor:
        return matrix.double() + 1e-5 * matrix.double().trace() * torch.eye(size)

    wanted = seen.double() @ torch.linalg.inv(torch.linalg.cholesky(lifted(square))).t()
    trace = float(wanted.square().sum())
    energy = 1.5 * trace
    directions_kernel[(1,)](
        square, seen, torch.tensor(energy).sqrt(), found, folded, fold, spread, rows, R=size, BLOCK_D=64
    )
    assert error(found, wanted) < 1e-3
    variance = trace * 0.5 / (rows - size)
    assert spread.tolist() == pytest.approx([variance, energy / rows, 1 / 1.5 - size * variance / energy], rel=1e-3)
    of_fold = torch.eye(size) - variance * torch.linalg.inv(lifted(wanted.t() @ wanted))
    assert error(fold, of_fold) < 1e-3
    assert error(folded, wanted @ of_fold) < 1e-3


def test_weights_by_their_share() -> None:
    matrix, weight = torch.randn(40, 300, generator=torch.Generator().manual_seed(0)), torch.arange(40.0)
    mean = matrix.mean(0, keepdim=True)
    found = weighted_deviation(matrix, mean, weight, None, whole=weight.sum())
    assert error(found, ((weight / weight.sum()).sqrt()[:, None] * (matrix - mean)).double()) < 1e-6
    assert float(weighted_deviation(matrix, mean, weight * 0, None, whole=weight.sum() * 0).abs().max()) == 0
