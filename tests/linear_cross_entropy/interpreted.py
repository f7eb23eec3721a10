"""Numerics of the Triton kernels in Triton's interpreter. Collected by test_interpreted.py, in a process of its own.

The interpreter computes in numpy: fp32 and fp16 are faithful, bf16 is not, so bf16 is left to tests/gpu. Its cost is
per tile operation, so shapes are small and tiles large. Every shape is ragged in N, D and V.
"""

# ruff: noqa: N803 - N, D, V, E and C are the names of the glossary

import os
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 before triton is imported", allow_module_level=True)

from kernels.linear_cross_entropy import dense, filtered, forward, reference
from kernels.linear_cross_entropy.column_sum import column_sum
from kernels.linear_cross_entropy.config import ProductTile, Tile
from kernels.linear_cross_entropy.problem import Method, Needs, Problem, Statistics
from tests.linear_cross_entropy.cases import KINDS, eager_arithmetic, error, excess, make_problem, mean_upstream, oracle
from tests.linear_cross_entropy.elementwise import check_accurate_exp, check_precise_softcap

POINTERS = Tile(64, 128, 32, warps=4, stages=2, tma=False)
DESCRIPTORS = Tile(64, 128, 32, warps=4, stages=2, tma=True)
TILES = pytest.mark.parametrize("tile", [POINTERS, DESCRIPTORS], ids=["pointers", "descriptors"])
TOLERANCE = {torch.float32: 3e-6, torch.float16: 1e-3}


def product_of(tile: Tile) -> ProductTile:
    return ProductTile(64, 64, 32, warps=4, stages=2, tma=tile.tma)


def all_needs(problem: Problem) -> Needs:
    return Needs(True, True, problem.bias is not None)


def check_statistics(problem: Problem, tile: Tile, groups: int | None = None) -> None:
    found, exact = forward.statistics(problem, tile, groups), oracle(problem, mean_upstream(problem))[0]
    for name in ("loss", "lse", "nll"):
        torch.testing.assert_close(
            getattr(found, name), getattr(exact, name).float(), rtol=2e-5, atol=2e-5, equal_nan=True
        )


def check_gradients(problem: Problem, tile: Tile, grad_lse: torch.Tensor | None = None, width: int = 256) -> None:
    upstream = mean_upstream(problem) * problem.tokens
    grad_lse = torch.zeros_like(upstream) if grad_lse is None else torch.where(problem.counted, grad_lse, 0.0)
    statistics, exact = oracle(problem, upstream, grad_lse)
    narrow = Statistics(*(t.float() for t in statistics.tensors()))
    found = dense.gradients(problem, narrow, upstream, grad_lse, all_needs(problem), tile=tile, width=width)
    for name in ("input", "weight", "bias"):
        value = getattr(found, name)
        if value is not None:
            assert value.dtype == problem.input.dtype
            assert error(value, getattr(exact, name)) < TOLERANCE[value.dtype], name


@TILES
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("beta", "softcap"), [(0.0, None), (0.1, None), (1.0, 30.0), (0.5, 2.0)])
def test_forward_and_dense_backward(tile: Tile, dtype: torch.dtype, beta: float, softcap: float | None) -> None:
    problem = make_problem("zipf", 70, 40, 517, dtype=dtype, beta=beta, softcap=softcap, bias=True, ignored=9)
    check_statistics(problem, tile)
    check_gradients(problem, tile, torch.randn(70) * 0.1)


@pytest.mark.parametrize("groups", [1, 2, 3, 5])
def test_vocabulary_groups_do_not_change_the_result(groups: int) -> None:
    check_statistics(make_problem("zipf", 40, 24, 600, beta=0.1), POINTERS, groups)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("beta", "softcap"), [(0.0, None), (0.1, None), (1.0, None), (0.1, 2.0), (0.1, 30.0)])
def test_excess_over_eager_in_fp32(kind: str, beta: float, softcap: float | None) -> None:
    """Over three draws: at fp32 both errors are a few roundings, and one draw is luck."""
    excesses = []
    for seed in range(3):
        problem = make_problem(kind, 64, 96, 500, beta=beta, softcap=softcap, seed=seed)
        upstream = mean_upstream(problem)
        exact, eager = oracle(problem, upstream)[1], eager_arithmetic(problem, upstream)
        statistics, nothing = forward.statistics(problem, DESCRIPTORS), torch.zeros_like(upstream)
        found = dense.gradients(problem, statistics, upstream, nothing, Needs(True, True), tile=DESCRIPTORS)
        excesses.append(
            (excess(found.input, eager.input, exact.input), excess(found.weight, eager.weight, exact.weight))
        )
    assert all(sum(values) / 3 <= 1.5 for values in zip(*excesses, strict=True)), excesses


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    N=st.integers(1, 140),
    D=st.integers(1, 70),
    V=st.integers(1, 400),
    kind=st.sampled_from(["gaussian", "confident", "uniform"]),
    beta=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    softcap=st.sampled_from([None, 30.0, 2.0]),
    bias=st.booleans(),
    share_ignored=st.sampled_from([0.0, 0.5, 1.0]),
    dtype=st.sampled_from(list(TOLERANCE)),
)
def test_any_shape(N, D, V, kind, beta, softcap, bias, share_ignored, dtype) -> None:
    problem = make_problem(
        kind, N, D, V, dtype=dtype, beta=beta, softcap=softcap, bias=bias, ignored=int(share_ignored * N)
    )
    found = forward.statistics(problem, POINTERS)
    expected = reference.statistics(problem)
    for name in ("loss", "lse", "nll"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=3e-5, atol=3e-5)
    upstream, nothing = mean_upstream(problem), torch.zeros(N)
    gradients = dense.gradients(problem, found, upstream, nothing, all_needs(problem), tile=POINTERS)
    exact = reference.gradients(problem, expected, upstream, nothing, all_needs(problem), Method())
    for name in ("input", "weight", "bias"):
        value, wanted = getattr(gradients, name), getattr(exact, name)
        if value is not None:
            scale = float(upstream.max()) * float(
                problem.input.float().abs().max() + problem.weight.float().abs().max()
            )
            torch.testing.assert_close(value, wanted, rtol=3e-3, atol=max(scale, 1e-6) * 2e-3)


def test_elementwise_functions_of_fp32_kernels() -> None:
    check_accurate_exp("cpu")
    check_precise_softcap("cpu")


@TILES
def test_padding_columns_do_not_enter(tile: Tile) -> None:
    """V one past a tile: padding columns once entered the lse as exp(-cap), and -inf * beta / V the smoothing sum."""
    for softcap in (None, 2.0):
        problem = make_problem("uniform", 10, 16, 129, beta=0.5, softcap=softcap)
        found = forward.statistics(problem, tile)
        assert bool(found.loss.isfinite().all())
        assert abs(float(found.lse.mean()) - float(torch.tensor(129.0).log())) < 1e-3
        check_gradients(problem, tile)


def test_confident_losses_are_never_negative() -> None:
    problem = make_problem("confident", 64, 64, 400, dtype=torch.float16)
    problem.target.copy_(torch.mm(problem.input.float(), problem.weight.float().t()).argmax(dim=1))
    assert float(forward.statistics(problem, POINTERS).nll.min()) >= 0.0


def test_huge_logits_of_ignored_rows_leave_no_nan() -> None:
    problem = make_problem("gaussian", 20, 16, 150, ignored=10)
    problem.input[problem.target == -100] *= 1e4  # exp(z - 0) is inf there, and inf * 0 would be nan
    check_gradients(problem, POINTERS)


@TILES
@pytest.mark.parametrize("groups", [1, 3])
def test_classes_masked_by_the_bias(tile: Tile, groups: int) -> None:
    """A bias of -inf over whole tiles, whole vocabulary groups, the last ragged one: padded vocabularies do that."""
    problem = make_problem("gaussian", 40, 24, 600, bias=True)
    problem.target.copy_(torch.arange(40) + 300)
    for masked in (slice(0, 260), slice(350, 600), slice(1, 2)):
        problem.bias.zero_()[masked] = float("-inf")
        problem.bias[300:340] = 0.0
        check_statistics(problem, tile, groups)
        check_gradients(problem, tile)


@pytest.mark.parametrize("eps", [2.0**-12, 0.125])
def test_a_filter_drops_no_nan(eps: float) -> None:
    problem = make_problem("gaussian", 70, 24, 517)
    problem.input[5] = float("nan")
    statistics, upstream = forward.statistics(problem, POINTERS), mean_upstream(problem)
    method, nothing = Method(True, eps, False), torch.zeros_like(upstream)
    found = filtered.gradients(
        problem, statistics, upstream, nothing, Needs(True, True), method, tile=POINTERS, product=product_of(POINTERS)
    )
    assert bool(found.weight.isnan().all()) and bool(found.input[5].isnan().all())
    assert not bool(found.input[6:].isnan().any())


def test_targets_out_of_range_give_nan_losses_and_no_gradient() -> None:
    problem = make_problem("gaussian", 20, 16, 150, beta=0.1)
    problem.target[:3] = torch.tensor([150, -1, 2**40])
    found = forward.statistics(problem, POINTERS)
    assert found.loss[:3].isnan().all() and found.nll[:3].isnan().all() and found.loss[3:].isfinite().all()
    upstream = torch.where(problem.counted, torch.rand(20), 0.0)
    gradients = dense.gradients(problem, found, upstream, torch.zeros(20), Needs(True, True), tile=POINTERS)
    assert gradients.input[:3].abs().max() == 0
    assert gradients.weight.isfinite().all()


@pytest.mark.parametrize("needs", [Needs(True, False), Needs(False, True), Needs(False, False, True)], ids=str)
def test_only_what_is_needed(needs: Needs) -> None:
    problem = make_problem("zipf", 70, 40, 517, beta=0.1, bias=True)
    upstream = mean_upstream(problem)
    exact, statistics = oracle(problem, upstream)[1], reference.statistics(problem)
    for method in (Method(), Method(True, 2.0**-12, True)):
        nothing = torch.zeros_like(upstream)
        if method.filtered:
            found = filtered.gradients(
                problem, statistics, upstream, nothing, needs, method, tile=POINTERS, product=product_of(POINTERS)
            )
        else:
            found = dense.gradients(problem, statistics, upstream, nothing, needs, tile=POINTERS)
        for name in ("input", "weight", "bias"):
            value = getattr(found, name)
            assert (value is not None) == getattr(needs, name)
            assert value is None or error(value, getattr(exact, name)) < 2e-2


# A sorted vocabulary concerns what comes before and after the kernel that beta and softcap are of, and eps is a number
# to it: every eps with every order once, every beta and softcap with the filter's both branches (0 leaves it out).
FILTERS = [
    pytest.param(0.0, False, 0.0, None),
    pytest.param(0.0, False, 0.1, None),
    pytest.param(0.0, False, 0.5, 2.0),
    pytest.param(2.0**-12, True, 0.0, None),
    pytest.param(2.0**-12, False, 0.1, None),
    pytest.param(0.05, False, 0.5, 2.0),
    pytest.param(0.05, True, 0.5, 2.0),
    pytest.param(0.05, True, 0.1, None),
    pytest.param(0.05, False, 0.0, None),
]


@TILES
@pytest.mark.parametrize(("eps", "sort", "beta", "softcap"), FILTERS)
def test_filter_skips_what_it_says(tile: Tile, eps: float, sort: bool, beta: float, softcap: float | None) -> None:
    """Against plain torch that zeroes the same blocks."""
    problem = make_problem("zipf", 150, 40, 517, beta=beta, softcap=softcap, bias=True, ignored=5)
    upstream = mean_upstream(problem) * 150
    grad_lse = upstream * -0.5  # so that |g| + |l|, the bound's scale, is thrice |g + l|
    statistics, method = reference.statistics(problem), Method(True, eps, sort)
    needs = all_needs(problem)
    found = filtered.gradients(
        problem, statistics, upstream, grad_lse, needs, method, tile=tile, product=product_of(tile), width=256
    )
    blocks = (tile.block_n, tile.block_v)
    order = None
    if method.sort:
        order = filtered.class_order(problem, filtered.plan(problem, needs, method, 256))
    expected = reference.gradients(problem, statistics, upstream, grad_lse, needs, method, blocks=blocks, order=order)
    unfiltered = reference.gradients(problem, statistics, upstream, grad_lse, needs, Method())
    for name in ("input", "weight", "bias"):
        assert error(getattr(found, name), getattr(expected, name)) < 3e-6, name
    if eps == 0.05:  # the case proves something: the filter did drop blocks
        assert error(expected.weight, unfiltered.weight) > 1e-4


def test_smoothing_is_dropped_with_the_tile() -> None:
    """Uniform logits and a coarse filter: all that is left is the block with the targets.

    Smoothing kept where the softmax is dropped would push the other classes up at every step, with nothing to stop it.
    """
    problem = make_problem("uniform", 64, 32, 640, beta=0.5)
    problem.target.fill_(0)
    upstream = mean_upstream(problem)
    statistics, nothing = reference.statistics(problem), torch.zeros(64)
    found = filtered.gradients(
        problem, statistics, upstream, nothing, Needs(True, True), Method(True, 0.05, False), tile=POINTERS,
        product=product_of(POINTERS),
    )  # fmt: skip
    width = POINTERS.block_v
    assert bool(found.weight[:width].any(dim=1).all()) and not bool(found.weight[width:].any())
    kept = reference.gradients(problem, statistics, upstream, nothing, Needs(True, True), Method())
    dz = found.weight[:width] - kept.weight[:width]  # of the block nothing is missing
    assert float(dz.norm() / kept.weight[:width].norm()) < 3e-6


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (50, 300), (300, 3)])
@pytest.mark.parametrize("parts", [1024, 8])  # 8: parts of several steps of 16 rows, the last one ragged
def test_column_sum(rows: int, cols: int, parts: int, weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[column_sum.__module__], "PARTS", parts)
    matrix = torch.randn(rows, cols + 5, generator=torch.Generator().manual_seed(0))[:, :cols]
    weights = torch.rand(rows, generator=torch.Generator().manual_seed(1)) if weighted else None
    expected = ((1.0 if weights is None else weights.double()[:, None]) * matrix.double()).sum(dim=0)
    torch.testing.assert_close(column_sum(matrix, weights), expected.float(), rtol=1e-5, atol=1e-4)


def test_blocks_of_ignored_rows_are_walked_over() -> None:
    problem = make_problem("zipf", 150, 24, 300, beta=0.1)
    problem.target[10:140] = -100  # the second block of 64, whole; parts of the others
    check_statistics(problem, DESCRIPTORS)
    statistics, upstream = forward.statistics(problem, DESCRIPTORS), mean_upstream(problem)
    nothing, exact = torch.zeros(150), oracle(problem, upstream)[1]
    found = dense.gradients(problem, statistics, upstream, nothing, Needs(True, True), tile=DESCRIPTORS)
    assert error(found.input, exact.input) < 3e-6 and error(found.weight, exact.weight) < 3e-6


def test_two_runs_are_bitwise_equal() -> None:
    problem = make_problem("zipf", 70, 40, 517, beta=0.1)
    upstream, nothing = mean_upstream(problem), torch.zeros(70)
    runs = []
    for _ in range(2):
        statistics = forward.statistics(problem, POINTERS)
        exact = dense.gradients(problem, statistics, upstream, nothing, Needs(True, True), tile=POINTERS)
        coarse = filtered.gradients(
            problem, statistics, upstream, nothing, Needs(True, True), Method(True, 2.0**-12, True),
            tile=POINTERS, product=product_of(POINTERS),
        )  # fmt: skip
        runs.append((statistics.loss, exact.input, exact.weight, coarse.input, coarse.weight))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
