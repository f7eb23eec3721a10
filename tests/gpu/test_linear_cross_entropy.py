"""The kernels on a GPU: fp64 oracle, every trap of published kernels, torch.compile, graphs.

`excess` is the error over that of eager arithmetic in the same dtype (tests/linear_cross_entropy/cases.py).
"""

# ruff: noqa: N803 - N, D, V, E and C are the names of the glossary

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from kernels import linear_cross_entropy
from kernels.linear_cross_entropy import dense, filtered, forward
from kernels.linear_cross_entropy.config import HOPPER_TILE, POINTER_PRODUCT, POINTER_TILE, choose_tile
from kernels.linear_cross_entropy.problem import Gradients, Method, Needs, Problem, Statistics
from tests.linear_cross_entropy.cases import (
    KINDS,
    eager_arithmetic,
    error,
    excess,
    make_problem,
    mean_upstream,
    oracle,
)
from tests.linear_cross_entropy.elementwise import check_accurate_exp, check_precise_softcap

MIB = 2**20
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
HAS_TMA = torch.cuda.get_device_capability() >= (9, 0)
MAX_EXCESS = 1.5


@pytest.fixture(autouse=True)
def clean_device() -> Iterator[None]:
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.cuda.empty_cache()


def problem_of(kind: str, N: int = 500, D: int = 256, V: int = 5003, **options: object) -> Problem:
    return make_problem(kind, N, D, V, device="cuda", **options)


def run(problem: Problem, upstream: Tensor, tile=None, method: Method | None = None) -> tuple[Statistics, Gradients]:
    statistics, nothing = forward.statistics(problem, tile), torch.zeros_like(upstream)
    needs = Needs(True, True, problem.bias is not None)
    if method is not None:
        return statistics, filtered.gradients(problem, statistics, upstream, nothing, needs, method)
    return statistics, dense.gradients(problem, statistics, upstream, nothing, needs, tile=tile)


def assert_agrees(problem: Problem, tile=None, method: Method | None = None) -> None:
    upstream = mean_upstream(problem)
    exact_statistics, exact = oracle(problem, upstream)
    eager = eager_arithmetic(problem, upstream)
    statistics, found = run(problem, upstream, tile, method)
    counted = problem.counted
    limit = 1e-5 * max(float(exact_statistics.lse[counted].abs().mean()), 1.0)
    assert float((statistics.loss - exact_statistics.loss)[counted].abs().max()) <= 4 * limit
    assert abs(float((statistics.loss - exact_statistics.loss)[counted].mean())) <= limit
    assert excess(found.input, eager.input, exact.input) <= MAX_EXCESS
    assert excess(found.weight, eager.weight, exact.weight) <= MAX_EXCESS
    if found.bias is not None:
        assert error(found.bias, exact.bias) <= 64 * torch.finfo(found.bias.dtype).eps


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("softcap", [None, 30.0, 2.0])
def test_exact_agrees(dtype: torch.dtype, kind: str, beta: float, softcap: float | None) -> None:
    assert_agrees(problem_of(kind, dtype=dtype, beta=beta, softcap=softcap, ignored=37))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("beta", "softcap"), [(0.0, None), (0.1, None), (1.0, None), (0.1, 2.0)])
def test_unfiltered_block_sparse_agrees(kind: str, beta: float, softcap: float | None) -> None:
    problem = problem_of(kind, dtype=torch.bfloat16, beta=beta, softcap=softcap)
    assert_agrees(problem, method=Method(True, 0.0, False))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("D", [64, 100, 255, 256])  # rows of 200 bytes start on 8, rows of 510 on 2
def test_pointer_and_descriptor_paths(dtype: torch.dtype, D: int) -> None:
    problem = problem_of("zipf", D=D, dtype=dtype, beta=0.1, softcap=30.0, bias=True)
    assert_agrees(problem)
    assert_agrees(problem, tile=POINTER_TILE)


@pytest.mark.skipif(not HAS_TMA, reason="needs a GPU with the tensor copy engine (Hopper or later)")
def test_paths_agree_with_each_other() -> None:
    problem = problem_of("zipf", dtype=torch.bfloat16, beta=0.1)
    upstream = mean_upstream(problem)
    a, b = run(problem, upstream, HOPPER_TILE)[1], run(problem, upstream, POINTER_TILE)[1]
    assert error(a.weight, b.weight) < 2e-3 and error(a.input, b.input) < 2e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("N", "D", "V"), [(1, 8, 1), (1, 64, 257), (127, 40, 129), (129, 72, 50257), (128, 64, 256)])
def test_ragged_shapes(dtype: torch.dtype, N: int, D: int, V: int) -> None:
    """The filter's row against an oracle that drops the same blocks. Over three draws: so few roundings are luck."""
    methods = [None, Method(True, 0.0, False), Method(True, 2.0**-12, True), Method(True, 2.0**-12, False)]
    excesses: dict[Method | None, list[tuple[float, float]]] = {method: [] for method in methods}
    for seed in range(3):
        problem = problem_of("gaussian", N=N, D=D, V=V, dtype=dtype, beta=0.1, bias=True, seed=seed)
        upstream = mean_upstream(problem)
        exact_statistics, exact = oracle(problem, upstream)
        eager = eager_arithmetic(problem, upstream)
        for method in methods:
            statistics, found = run(problem, upstream, method=method)
            torch.testing.assert_close(statistics.loss, exact_statistics.loss.float(), rtol=1e-4, atol=1e-4)
            if V == 1:  # one class has no gradient
                largest = max(float(problem.input.abs().max()), float(problem.weight.abs().max()))
                assert float(found.input.abs().max()) <= 1e-7 * largest
                assert float(found.weight.abs().max()) <= 1e-7 * largest
                continue
            kept = exact if method is None else oracle(problem, upstream, method=method, **blocks(problem, method))[1]
            errors = [
                excess(getattr(found, name), getattr(eager, name), getattr(exact, name), getattr(exact, name) - part)
                for name, part in (("input", kept.input), ("weight", kept.weight))
            ]
            excesses[method].append((errors[0], errors[1]))
    for method, values in excesses.items():
        assert all(sum(found) / 3 <= MAX_EXCESS for found in zip(*values, strict=True)), (method, values)


def blocks(problem: Problem, method: Method) -> dict[str, object]:
    """What the filter decides over on this device, for the oracle."""
    tile, slices = choose_tile(problem), filtered.plan(problem, Needs(True, True, problem.bias is not None), method)
    order = filtered.class_order(problem, slices) if method.sort else None
    return {"blocks": (tile.block_n, tile.block_v), "order": order}


def test_elementwise_functions_of_fp32_kernels() -> None:
    check_accurate_exp("cuda")
    check_precise_softcap("cuda")


def test_poisoned_memory_is_never_read() -> None:
    """Scratch, partials and unwritten rows of dC are NaN before the call."""
    problem = problem_of("zipf", N=300, V=3001, dtype=torch.bfloat16, beta=0.1, bias=True)
    upstream = mean_upstream(problem)
    for method in (None, Method(True, 2.0**-12, True), Method(True, 2.0**-12, False)):
        torch.full((64 * MIB,), float("nan"), device="cuda")  # 256 MiB, freed into the cache and handed out again
        statistics, found = run(problem, upstream, method=method)
        values = (statistics.loss, found.input, found.weight, found.bias)
        assert all(bool(t.isfinite().all()) for t in values)


def test_two_runs_are_bitwise_equal() -> None:
    problem = problem_of("zipf", N=3000, D=512, V=20011, dtype=torch.bfloat16, beta=0.1, bias=True)
    upstream = mean_upstream(problem)
    for method in (None, Method(True, 2.0**-12, True)):
        runs = [run(problem, upstream, method=method) for _ in range(3)]
        for statistics, found in runs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(statistics.tensors(), runs[0][0].tensors(), strict=True))
            assert torch.equal(found.input, runs[0][1].input) and torch.equal(found.weight, runs[0][1].weight)
            assert torch.equal(found.bias, runs[0][1].bias)


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("gradient", ["exact", "filtered"])
@pytest.mark.parametrize("fused", [False, True])
def test_gradients_of_all_classes_sum_to_zero(beta: float, gradient: str, fused: bool) -> None:
    """sum_v dC_v = 0 without a softcap; less what a filter drops."""
    problem = problem_of("zipf", N=1000, V=20000, dtype=torch.bfloat16, beta=beta)
    weight = problem.weight.clone().requires_grad_()
    eps = 2.0**-12 if beta == 0 else None
    linear_cross_entropy(
        problem.input, weight, problem.target, label_smoothing=beta, gradient=gradient, fused=fused, filter_eps=eps
    ).backward()
    eager = eager_arithmetic(problem, mean_upstream(problem, 1.0)).weight.double()
    total, norms = weight.grad.double().sum(0).norm(), weight.grad.double().norm(dim=1).sum()
    limit = 2 * float(eager.sum(0).norm() / eager.norm(dim=1).sum())
    assert float(total / norms) <= (limit if gradient == "exact" else 0.2)


def test_confident_losses_are_never_negative() -> None:
    problem = problem_of("confident", dtype=torch.bfloat16)
    logits = problem.input.double() @ problem.weight.double().t()
    problem.target.copy_(logits.argmax(dim=1))
    assert float(forward.statistics(problem).nll.min()) >= 0.0


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("gradient", ["exact", "filtered"])
def test_every_row_ignored(fused: bool, gradient: str) -> None:
    for pack in (True, False):
        input = torch.randn(40, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        weight = torch.randn(500, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        target = torch.full((40,), -100, device="cuda")
        options = dict(label_smoothing=0.1, fused=fused, gradient=gradient, pack_tokens=pack)
        mean = linear_cross_entropy(input, weight, target, **options)
        total = linear_cross_entropy(input, weight, target, reduction="sum", **options)
        assert mean.isnan() and total == 0
        (mean + total).backward()
        assert input.grad.abs().max() == 0 and weight.grad.abs().max() == 0


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_ignored_rows(pack: bool, share: float) -> None:
    problem = problem_of("zipf", dtype=torch.bfloat16, beta=0.1, ignored=int(500 * share))
    upstream = mean_upstream(problem, 1.0)
    exact_statistics, exact = oracle(problem, upstream)
    input, weight = problem.input.clone().requires_grad_(), problem.weight.clone().requires_grad_()
    loss, lse, nll = linear_cross_entropy(
        input, weight, problem.target, label_smoothing=0.1, pack_tokens=pack, return_lse=True, return_nll=True
    )
    assert abs(float(loss.detach()) - float((exact_statistics.loss * upstream).sum())) < 1e-4
    torch.testing.assert_close(lse, exact_statistics.lse.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(nll, exact_statistics.nll.float(), rtol=1e-4, atol=1e-4)
    loss.backward()
    eager = eager_arithmetic(problem, upstream)
    assert excess(input.grad, eager.input, exact.input) <= MAX_EXCESS
    assert excess(weight.grad, eager.weight, exact.weight) <= MAX_EXCESS
    assert input.grad[problem.target == -100].abs().max() == 0


def test_targets_out_of_range_read_nothing() -> None:
    problem = problem_of("gaussian", dtype=torch.bfloat16, beta=0.1)
    problem.target[:4] = torch.tensor([5003, -1, 2**40, -(2**40)], device="cuda")
    input, weight = problem.input.clone().requires_grad_(), problem.weight.clone().requires_grad_()
    loss = linear_cross_entropy(input, weight, problem.target, label_smoothing=0.1, reduction="none")
    assert loss[:4].isnan().all() and loss[4:].isfinite().all()
    loss.nansum().backward()
    assert input.grad[:4].abs().max() == 0 and weight.grad.isfinite().all()
    with pytest.raises(ValueError, match="target: 4 classes outside"):
        linear_cross_entropy(input, weight, problem.target, check_targets=True)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_upstream_gradients_and_lse(reduction: str, fused: bool) -> None:
    torch.manual_seed(0)
    problem = problem_of("zipf", N=200, V=2000, dtype=torch.float32, beta=0.1)
    ours = [t.clone().requires_grad_() for t in (problem.input, problem.weight)]
    theirs = [t.clone().requires_grad_() for t in (problem.input, problem.weight)]
    loss, lse = linear_cross_entropy(
        *ours, problem.target, label_smoothing=0.1, reduction=reduction, return_lse=True, fused=fused
    )
    plain = linear_cross_entropy(*ours, problem.target, label_smoothing=0.1, reduction=reduction, fused=fused)
    logits = F.linear(*theirs)
    expected = F.cross_entropy(logits, problem.target, label_smoothing=0.1, reduction=reduction)
    upstream = torch.randn_like(loss)
    z_loss = 0.01 * lse.square().mean()
    ((loss + plain) * upstream).sum().add(z_loss).backward()
    (2 * (expected * upstream).sum() + 0.01 * logits.logsumexp(1).square().mean()).backward()
    for a, b in zip(ours, theirs, strict=True):
        assert error(a.grad, b.grad) < 1e-5


@pytest.mark.parametrize("fused", [False, True])
def test_torch_compile(fused: bool) -> None:
    torch._dynamo.reset()
    problem = problem_of("zipf", dtype=torch.bfloat16)

    def step(input: Tensor, weight: Tensor) -> Tensor:
        return linear_cross_entropy(input * 1.5, weight, problem.target, label_smoothing=0.1, fused=fused) * 0.7

    leaves = [t.clone().requires_grad_() for t in (problem.input, problem.weight)]
    plain = torch.autograd.grad(step(*leaves), leaves)
    found = torch.autograd.grad(torch.compile(step, fullgraph=True)(*leaves), leaves)
    for a, b in zip(found, plain, strict=True):
        assert error(a, b) < 5e-3


def test_autocast() -> None:
    problem = problem_of("zipf")
    leaves = [t.clone().requires_grad_() for t in (problem.input, problem.weight)]
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = linear_cross_entropy(*leaves, problem.target)
    loss.backward()
    narrow = linear_cross_entropy(problem.input.bfloat16(), problem.weight.bfloat16(), problem.target)
    assert torch.equal(loss, narrow) and leaves[0].grad.dtype == torch.float32


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("gradient", ["exact", "filtered"])
def test_only_packing_makes_the_host_wait(gradient: str, fused: bool) -> None:
    """Once, in the forward; the backward of a packed loss does not, nor does anything with pack_tokens=False."""
    problem = problem_of("zipf", dtype=torch.bfloat16, ignored=300)
    input, weight = problem.input.clone().requires_grad_(), problem.weight.clone().requires_grad_()
    options = dict(label_smoothing=0.1, gradient=gradient, fused=fused)
    for pack in (True, False):
        for strict in (False, True):  # the first time kernels are compiled
            try:
                torch.cuda.set_sync_debug_mode("error" if strict and not pack else "default")
                loss = linear_cross_entropy(input, weight, problem.target, pack_tokens=pack, **options)
                torch.cuda.set_sync_debug_mode("error" if strict else "default")
                torch.autograd.grad(loss, (input, weight))
            finally:
                torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("gradient", ["exact", "filtered"])
def test_cuda_graph(gradient: str) -> None:
    problem = problem_of("zipf", dtype=torch.bfloat16, ignored=100)
    input, weight = problem.input.clone().requires_grad_(), problem.weight.clone().requires_grad_()

    def step() -> tuple[Tensor, ...]:
        loss = linear_cross_entropy(
            input, weight, problem.target, label_smoothing=0.1, gradient=gradient, pack_tokens=False
        )
        return loss, *torch.autograd.grad(loss, (input, weight))

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        input.mul_(0.5)
    graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(captured, step(), strict=True):
        assert torch.equal(a, b)


def test_second_device_argument_checks() -> None:
    input, weight = torch.randn(4, 8, device="cuda"), torch.randn(9, 8)
    with pytest.raises(ValueError, match="linear_weight: on cpu; input is on cuda"):
        linear_cross_entropy(input, weight, torch.zeros(4, dtype=torch.int64, device="cuda"))


def test_filtered_products_on_the_pointer_path() -> None:
    problem = problem_of("zipf", dtype=torch.bfloat16, beta=0.1)
    upstream, method = mean_upstream(problem), Method(True, 2.0**-12, True)
    statistics, nothing = forward.statistics(problem), torch.zeros_like(upstream)
    needs = Needs(True, True)
    a = filtered.gradients(problem, statistics, upstream, nothing, needs, method)
    b = filtered.gradients(
        problem, statistics, upstream, nothing, needs, method, tile=POINTER_TILE, product=POINTER_PRODUCT
    )
    assert error(a.weight, b.weight) < 2e-2 and error(a.input, b.input) < 2e-1  # tiles differ, so does the filter
