"""Tail-corrected gradients on a GPU: accuracy against eager arithmetic, their certificate, memory, and what falls back.

`excess` is the error over that of eager arithmetic in the same dtype (tests/linear_cross_entropy/cases.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from kernels import LinearCrossEntropyLoss, linear_cross_entropy
from kernels.linear_cross_entropy.config import tail_tile_classes
from kernels.linear_cross_entropy.problem import Problem
from kernels.linear_cross_entropy.tail.report import GradientStats
from kernels.linear_cross_entropy.vocabulary_order import balanced_tree, logit_features
from tests.linear_cross_entropy import cases
from tests.linear_cross_entropy.cases import eager_arithmetic, error, excess, mean_upstream, oracle

MIB = 2**20
N, D, V = 2048, 512, 32768
SETTINGS = [(beta, softcap) for beta in (0.0, 0.1) for softcap in (None, 30.0)]

# name: kind, its parameters, the most excess. Strengths as kernel.md names them: weak is a = 30.
INPUTS: dict[str, tuple[str, dict[str, float], float]] = {
    "zipf-strong": ("zipf", {"strength": 4.0}, 1.25),
    "zipf-medium": ("zipf", {"strength": 12.0}, 1.25),
    "zipf-weak": ("zipf", {"strength": 30.0}, 1.25),
    **{f"gaussian-{std}": ("gaussian", {"logit_std": std}, 1.5) for std in (0.5, 1.0, 2.0, 4.0)},
    "confident": ("confident", {}, 1.5),
    "smoothed": ("smoothed", {}, 1.5),
    "uniform": ("uniform", {}, 1.5),
}


@pytest.fixture(autouse=True)
def clean_device() -> Iterator[None]:
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.cuda.empty_cache()


def draw(
    name: str,
    tokens: int = N,
    hidden: int = D,
    classes: int = V,
    *,
    dtype: torch.dtype = torch.bfloat16,
    beta: float = 0.0,
    softcap: float | None = None,
    bias: bool = False,
    ignored: int = 0,
) -> Problem:
    kind, parameters, _ = INPUTS[name]
    generator = torch.Generator("cuda").manual_seed(0)
    input, weight, target = cases.KINDS[kind](tokens, hidden, classes, generator, **parameters)
    target[torch.randperm(tokens, generator=generator, device="cuda")[:ignored]] = -100
    linear_bias = 0.1 * torch.randn(classes, generator=generator, device="cuda") if bias else None
    narrow = [None if t is None else t.to(dtype) for t in (input, weight, linear_bias)]
    return Problem(*narrow, target, beta, -100, softcap or 0.0)


@dataclass(frozen=True)
class Found:
    loss: Tensor
    input: Tensor
    weight: Tensor
    bias: Tensor | None
    stats: GradientStats


def tree(problem: Problem) -> Tensor:
    tile = tail_tile_classes(problem.input, problem.weight)
    assert tile, "these shapes are to be tail-corrected"
    return balanced_tree(logit_features(problem.weight, problem.input), tile)


def run(problem: Problem, order: Tensor | None = None, scale: float = 0.7, **options: Any) -> Found:
    leaves = [None if t is None else t.detach().requires_grad_() for t in (problem.input, problem.weight, problem.bias)]
    loss, stats = linear_cross_entropy(
        leaves[0], leaves[1], problem.target, linear_bias=leaves[2], label_smoothing=problem.label_smoothing,
        softcap=problem.softcap or None, vocabulary_order=order, return_stats=True,
        **{"gradient": "auto", **options},
    )  # fmt: skip
    (loss * scale).backward()
    return Found(loss.detach(), *(None if t is None else t.grad for t in leaves), stats)


def assert_agrees(problem: Problem, found: Found, most: float = 1.5) -> None:
    upstream = mean_upstream(problem)
    statistics, exact = oracle(problem, upstream)
    eager = eager_arithmetic(problem, upstream)
    assert abs(float(found.loss) - float(statistics.loss.sum() / problem.counted.sum())) < 1e-4
    excesses = excess(found.input, eager.input, exact.input), excess(found.weight, eager.weight, exact.weight)
    print(found.stats, excesses)
    assert max(excesses) <= most, excesses
    if found.bias is not None:
        assert error(found.bias, exact.bias) <= 64 * torch.finfo(found.bias.dtype).eps


@pytest.mark.parametrize(("beta", "softcap"), SETTINGS)
@pytest.mark.parametrize("name", INPUTS)
def test_as_accurate_as_eager(name: str, beta: float, softcap: float | None) -> None:
    """gradient="auto" in the order of a tree, with the default tolerance."""
    problem = draw(name, beta=beta, softcap=softcap)
    upstream = mean_upstream(problem)
    exact, eager = oracle(problem, upstream)[1], eager_arithmetic(problem, upstream)
    found = run(problem, tree(problem))
    excesses = excess(found.input, eager.input, exact.input), excess(found.weight, eager.weight, exact.weight)
    print(found.stats, excesses)
    assert max(excesses) <= INPUTS[name][2], excesses
    # A row that eager's rounding leaves something of is not zero here
    cold = torch.ones(V, dtype=torch.bool, device="cuda")
    cold[problem.target] = False
    seen = eager.weight[cold].any(dim=1)
    assert bool(found.weight[cold].any(dim=1)[seen].all())


@pytest.mark.parametrize(("beta", "softcap"), SETTINGS)
@pytest.mark.parametrize("name", INPUTS)
def test_the_certificate_holds(name: str, beta: float, softcap: float | None) -> None:
    """gradient="corrected", coarse and fine: the model is used however badly it fits."""
    problem = draw(name, beta=beta, softcap=softcap)
    exact, order = oracle(problem, mean_upstream(problem))[1], tree(problem)
    for tolerance in (3e-2, None):
        found = run(problem, order, gradient="corrected", gradient_tolerance=tolerance)
        stats, measured = found.stats, (error(found.input, exact.input), error(found.weight, exact.weight))
        print(stats, measured)
        assert stats.path == "corrected" and 0 < stats.active_fraction <= stats.padded_fraction
        assert measured[0] <= stats.input_bound + stats.arithmetic_error
        if name.startswith("zipf"):
            assert stats.input_bound <= 10 * max(measured[0], stats.arithmetic_error)
        method_error = measured[1] ** 2 - stats.arithmetic_error**2
        if method_error > 4 * stats.arithmetic_error**2:  # not drowned in rounding
            assert 0.4 <= stats.weight_estimate / method_error**0.5 <= 2.5


def test_a_smaller_tolerance_computes_more_and_errs_less() -> None:
    problem = draw("zipf-medium", beta=0.1)
    exact, order = oracle(problem, mean_upstream(problem))[1], tree(problem)
    found = [run(problem, order, gradient="corrected", gradient_tolerance=t) for t in (1e-1, 1e-2, 1e-3)]
    active = [one.stats.active_fraction for one in found]
    assert active[0] < active[1] < active[2]
    for name in ("input", "weight"):
        errors = [error(getattr(one, name), getattr(exact, name)) for one in found]
        assert errors[0] > errors[1] >= 0.95 * errors[2], (name, errors)


@pytest.mark.parametrize("order", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("tokens", "hidden", "classes"), [(300, 72, 2051), (2047, 512, 20011), (1000, 100, 9000)])
def test_ragged_shapes(tokens: int, hidden: int, classes: int, dtype: torch.dtype, order: bool) -> None:
    """No multiple of a tile in N, D or V; rows of 200 bytes start on 8, which only pointer tiles can read."""
    problem = draw("zipf-medium", tokens, hidden, classes, dtype=dtype, beta=0.1, bias=True)
    found = run(problem, tree(problem) if order else None, gradient="corrected")
    assert found.stats.path == "corrected"
    assert_agrees(problem, found)


def test_more_tokens_than_vocabulary_with_ignored_rows() -> None:
    problem = draw("zipf-medium", 20_000, 256, 8192, beta=0.1, ignored=7_001)
    found = run(problem, tree(problem))
    assert_agrees(problem, found)
    assert found.input[problem.target == -100].abs().max() == 0


@pytest.mark.parametrize("softcap", [None, 30.0])
def test_fp16_with_a_small_upstream_gradient(softcap: float | None) -> None:
    """Modelled masses times the upstream gradient are below fp16's range; in units of the largest they are not."""
    problem = draw("zipf-medium", dtype=torch.float16, beta=0.1, softcap=softcap)
    order = tree(problem)
    large, small = (run(problem, order, scale=scale, gradient="corrected", gradient_tolerance=1e-2)
                    for scale in (256.0, 0.5))  # fmt: skip
    assert error(small.weight.float() * 512, large.weight.float()) < 2e-2


def test_views_that_start_nowhere_in_particular() -> None:
    """Rows a multiple of 16 bytes apart, the first not on 16: the copy engine cannot start there."""
    problem = draw("zipf-medium", beta=0.1)
    memory = [torch.empty(t.numel() + 8, dtype=t.dtype, device="cuda") for t in (problem.input, problem.weight)]
    views = [m[1 : 1 + t.numel()].view(t.shape) for m, t in zip(memory, (problem.input, problem.weight), strict=True)]
    for view, tensor in zip(views, (problem.input, problem.weight), strict=True):
        view.copy_(tensor)
        assert view.data_ptr() % 16
    shifted = replace(problem, input=views[0], weight=views[1])
    order = tree(problem)
    a, b = run(problem, order, gradient="corrected"), run(shifted, order, gradient="corrected")
    # cuBLAS takes another kernel for rows that do not start on 16 bytes, so the tail's products differ in fp32
    assert torch.equal(a.loss, b.loss) and error(b.weight, a.weight) < 1e-3 and error(b.input, a.input) < 4e-3


def test_columns_of_a_wider_matrix() -> None:
    problem = draw("zipf-medium", beta=0.1)
    wide = [torch.randn(len(t), D + 24, device="cuda", dtype=t.dtype) for t in (problem.input, problem.weight)]
    wide[0][:, :D], wide[1][:, :D] = problem.input, problem.weight
    strided = replace(problem, input=wide[0][:, :D], weight=wide[1][:, :D])
    order = tree(problem)
    a, b = run(problem, order, gradient="corrected"), run(strided, order, gradient="corrected")
    assert error(b.weight, a.weight) < 4e-3 and error(b.input, a.input) < 4e-3


def test_few_tokens_or_classes_and_fp32_take_the_exact_path() -> None:
    for tokens, classes, dtype in ((128, V, torch.bfloat16), (N, 1000, torch.bfloat16), (N, 4096, torch.float32)):
        problem = draw("zipf-medium", tokens, 256, classes, dtype=dtype)
        assert run(problem, gradient="corrected").stats.path == "dense"


def test_flat_logits_at_a_fine_tolerance_take_the_dense_path_exactly() -> None:
    problem = draw("gaussian-4.0", beta=0.1)
    found = run(problem, tree(problem), gradient_tolerance=1e-6)
    assert found.stats.path == "dense" and found.stats.input_bound != found.stats.input_bound
    assert_agrees(problem, found)


def test_rows_without_a_gradient_hold_no_nan() -> None:
    """Scratch is nan before the call; some rows are ignored, out of range, or have an upstream gradient of 0."""
    problem = draw("zipf-medium", beta=0.1, ignored=100)
    problem.target[:3] = torch.tensor([V, -1, 2**40], device="cuda")
    torch.full((128 * MIB,), float("nan"), device="cuda")  # freed into the cache and handed out again
    leaves = problem.input.requires_grad_(), problem.weight.requires_grad_()
    loss = linear_cross_entropy(
        *leaves, problem.target, label_smoothing=0.1, reduction="none", gradient="corrected",
        vocabulary_order=tree(problem),
    )  # fmt: skip
    assert loss[:3].isnan().all() and loss[3:].isfinite().all()
    upstream = torch.full_like(loss, 1 / N)
    upstream[10:20] = 0.0
    loss.nan_to_num().backward(upstream)
    for tensor in leaves:
        assert bool(tensor.grad.isfinite().all())
    assert leaves[0].grad[:3].abs().max() == 0 and leaves[0].grad[10:20].abs().max() == 0


def test_upstream_gradients_that_cancel() -> None:
    """lse - loss is the target's logit: its gradient is the target's row of C, and the token."""
    problem = draw("zipf-medium")
    leaves = problem.input.requires_grad_(), problem.weight.requires_grad_()
    loss, lse = linear_cross_entropy(
        *leaves, problem.target, reduction="none", return_lse=True, gradient="corrected", vocabulary_order=tree(problem)
    )
    (lse - loss).mean().backward()
    tokens, classes = (leaf.detach().double() / N for leaf in leaves)
    weight = torch.zeros_like(classes).index_add_(0, problem.target, tokens)
    assert error(leaves[0].grad, classes[problem.target]) < 4e-3
    assert error(leaves[1].grad, weight) < 4e-3


def test_a_mean_over_no_rows() -> None:
    problem = draw("zipf-medium", beta=0.1, ignored=N)
    found = run(problem, tree(problem))
    assert found.loss.isnan() and found.input.abs().max() == 0 and found.weight.abs().max() == 0


def test_a_cuda_graph_capture_takes_the_exact_path() -> None:
    problem = draw("zipf-medium", beta=0.1)
    leaves = problem.input.requires_grad_(), problem.weight.requires_grad_()
    module = LinearCrossEntropyLoss(gradient="auto", label_smoothing=0.1, pack_tokens=False)
    module(*leaves, problem.target).backward()  # there is an order, and everything is compiled
    exact = linear_cross_entropy(*leaves, problem.target, label_smoothing=0.1, gradient="exact")
    expected = exact.detach(), *torch.autograd.grad(exact, leaves)
    # Autograd ties a leaf to the stream it was first used on: the capture has leaves of its own.
    leaves = tuple(leaf.detach().clone().requires_grad_() for leaf in leaves)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = module(*leaves, problem.target)
        captured = loss.detach(), *torch.autograd.grad(loss, leaves)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of the compiler's own imports
def test_a_compiled_model_in_a_cuda_graph_takes_the_exact_path() -> None:
    torch._dynamo.reset()
    problem = draw("zipf-medium", beta=0.1)
    leaves = problem.input.requires_grad_(), problem.weight.requires_grad_()

    def step(gradient: str) -> Tensor:
        return linear_cross_entropy(*leaves, problem.target, label_smoothing=0.1, gradient=gradient)

    expected = torch.autograd.grad(step("exact"), leaves)
    compiled = torch.compile(step, fullgraph=True, mode="reduce-overhead")
    for _ in range(4):  # warm, recorded, replayed
        torch.compiler.cudagraph_mark_step_begin()
        found = tuple(g.clone() for g in torch.autograd.grad(compiled("auto"), leaves))
        for a, b in zip(found, expected, strict=True):
            assert error(a, b) < 5e-3


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of the compiler's own imports
def test_torch_compile_with_a_kept_order() -> None:
    torch._dynamo.reset()
    problem = draw("zipf-medium", beta=0.1)
    leaves = problem.input.requires_grad_(), problem.weight.requires_grad_()
    module = LinearCrossEntropyLoss(gradient="auto", label_smoothing=0.1)
    module.refresh_order(*leaves)

    def step(input: Tensor, weight: Tensor) -> Tensor:
        return 0.7 * module(input * 1.5, weight, problem.target)

    plain = torch.autograd.grad(step(*leaves), leaves)
    found = torch.autograd.grad(torch.compile(step, fullgraph=True)(*leaves), leaves)
    for a, b in zip(found, plain, strict=True):
        assert error(a, b) < 5e-3


@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("gradient", ["auto", "corrected"])
def test_memory(gradient: str, softcap: float | None) -> None:
    """Above the inputs: the gradients, dE in fp32, what is kept of every tile, 64 MiB; retained: what is kept alone."""
    tokens, hidden, classes = 4096, 1024, 131072
    problem = draw("zipf-medium", tokens, hidden, classes, beta=0.1)
    leaves, order = (problem.input.requires_grad_(), problem.weight.requires_grad_()), tree(problem)
    tiles = -(-classes // tail_tile_classes(problem.input, problem.weight))
    # Statistics: the tiles' lse fp32, and bf16 residuals, under a softcap two slopes as well. Model: centres, shapes.
    array, kept = 4 * tiles * tokens, (6 if softcap is None else 10) * tiles * tokens
    model = (2 if softcap is None else 4) * tiles * hidden + 8 * classes
    gradients = 2 * (tokens + classes) * hidden

    def call() -> Tensor:
        return linear_cross_entropy(
            *leaves, problem.target, label_smoothing=0.1, softcap=softcap, gradient=gradient, vocabulary_order=order
        )

    for _ in range(2):  # the first compiles, and allocates workspaces that stay
        for leaf in leaves:
            leaf.grad = None
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        loss = call()
        retained = torch.cuda.memory_allocated() - before
        loss.backward()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
    print(f"peak {peak / MIB:.0f} MiB, retained {retained / MIB:.1f}, gradients {gradients / MIB:.0f}")
    assert peak <= gradients + 4 * tokens * hidden + 2 * array + 64 * MIB
    assert retained <= kept + model + 1 * MIB
