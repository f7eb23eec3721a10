"""Groups of tokens with a tail model each, and upstream gradients of both signs.

Collected by test_tail_groups_interpreted.py.
"""

# ruff: noqa: N806 - N, D and V are the names of the glossary

import os
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 before triton is imported", allow_module_level=True)

from kernels.linear_cross_entropy.problem import Problem
from kernels.linear_cross_entropy.tail.groups import group_means, group_tokens
from kernels.linear_cross_entropy.vocabulary_order import token_centres
from tests.linear_cross_entropy.cases import error, make_problem, mean_upstream, oracle
from tests.linear_cross_entropy.tail_runs import EVERY_PAIR, TARGETS_ALONE, per_token, run, tree, use_method

Method = Callable[..., None]


@pytest.fixture
def method(monkeypatch: pytest.MonkeyPatch) -> Method:
    return lambda **fields: use_method(monkeypatch, **fields)


def two_kinds(beta: float = 0.0) -> Problem:
    """Tokens of two kinds that shift the logits of a tile's classes in opposite directions."""
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    N, D, V = 512, 48, 700
    axis = torch.nn.functional.normalize(normal(D), dim=0)
    side = torch.where(torch.arange(N) % 2 == 0, 1.0, -1.0)
    input = 2.0 * side[:, None] * axis + 0.1 * normal(N, D)
    weight = normal(V, 1) * axis + 0.1 * normal(V, D)
    return Problem(input, weight, None, torch.randint(V, (N,), generator=generator), beta, -100, 0.0)


def relative_errors(problem: Problem, upstream: Tensor, **options: object) -> tuple[float, float]:
    found = run(problem, upstream, **options).gradients
    exact = oracle(problem, upstream)[1]
    return error(found.input, exact.input), error(found.weight, exact.weight)


@pytest.mark.parametrize("settings", [{}, {"beta": 0.1, "bias": True, "ignored": 141}], ids=["plain", "all"])
@pytest.mark.parametrize("ordered", [False, True])
def test_every_pair_computed_is_exact_in_any_group(settings: dict, ordered: bool, method: Method) -> None:
    problem = make_problem("zipf", 400, 60, 700, **settings)
    method(threshold=EVERY_PAIR)
    upstream = torch.where(problem.counted, per_token(problem), 0.0)
    statistics, exact = oracle(problem, upstream)
    order = tree(problem) if ordered else None
    found = run(problem, upstream, order=order, centres=token_centres(problem.input, 3))
    torch.testing.assert_close(found.outputs[0], statistics.loss.float(), rtol=2e-5, atol=2e-5)
    assert error(found.gradients.input, exact.input) < 3e-6 and error(found.gradients.weight, exact.weight) < 3e-6
    if problem.bias is not None:
        assert error(found.gradients.bias, exact.bias) < 3e-6


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_groups_model_what_one_shape_cannot(beta: float, method: Method) -> None:
    problem = two_kinds(beta)
    method(threshold=TARGETS_ALONE)
    upstream = mean_upstream(problem)
    one = relative_errors(problem, upstream, first_order=False)
    two = relative_errors(problem, upstream, first_order=False, centres=token_centres(problem.input, 2))
    assert two[0] < 0.3 * one[0] and two[1] < 0.3 * one[1]


def test_certificate_sees_groups(method: Method) -> None:
    problem = make_problem("zipf", 400, 60, 700, beta=0.1)
    method(threshold=2e-4)
    upstream = mean_upstream(problem)
    found = run(problem, upstream, centres=token_centres(problem.input, 3), certify=True)
    exact = oracle(problem, upstream)[1]
    measured = error(found.gradients.input, exact.input), error(found.gradients.weight, exact.weight)
    assert 1e-4 < measured[0] <= found.stats.input_bound + found.stats.arithmetic_error
    assert 0.5 < found.stats.weight_estimate / measured[1] < 2.0


def test_groups_are_runs_of_the_nearest_centres() -> None:
    problem = two_kinds()
    centres = token_centres(problem.input, 2)
    order, groups = group_tokens(problem.input, centres)
    assert sorted(order.tolist()) == list(range(problem.tokens))
    assert groups.of_block.tolist() == [0, 0, 1, 1] and groups.first_block().tolist() == [0, 2, 4]
    kinds = order % 2  # which kind each token is of
    assert kinds[:256].unique().numel() == 1 and kinds[256:].unique().numel() == 1
    found = group_means(problem.rows(order), groups)
    torch.testing.assert_close(found[0], problem.input[order[:256]].mean(0))
    nothing = replace(problem, target=torch.full_like(problem.target, -100))
    assert group_means(nothing.rows(order), groups).abs().sum() == 0


@pytest.mark.parametrize("grouped", [False, True])
def test_upstream_gradients_of_both_signs(grouped: bool, method: Method) -> None:
    """Masses that cancel say nothing about where the tail is: the first-order term must not divide by their sum."""
    problem = make_problem("gaussian", 256, 60, 700)
    upstream = torch.randn(256, generator=torch.Generator().manual_seed(1))
    upstream -= upstream.mean()
    centres = token_centres(problem.input, 2) if grouped else None
    method(threshold=TARGETS_ALONE, sampled_rows=512)
    without = relative_errors(problem, upstream, centres=centres, first_order=False)
    first_order = relative_errors(problem, upstream, centres=centres)
    assert first_order[0] < 0.5 * without[0]
    assert first_order[1] < 1.001 * without[1]


def test_token_centres_want_a_token_each() -> None:
    with pytest.raises(ValueError, match=r"count must lie in \[1, 5\]"):
        token_centres(torch.zeros(5, 3), 6)
