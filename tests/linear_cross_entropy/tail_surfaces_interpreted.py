"""What surrounds the tail-corrected gradients, in Triton's interpreter: routing, operators, function and module.

Collected by test_tail_surfaces_interpreted.py, in a process of its own. On a CPU the function takes the exact path;
here it is told that tiles of 128 classes can be tail-corrected, as it is on a GPU.
"""

# ruff: noqa: N806 - N, V and T are the names of the glossary

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 before triton is imported", allow_module_level=True)

from torch._subclasses import FakeTensorMode

from kernels import LinearCrossEntropyLoss, linear_cross_entropy
from kernels.linear_cross_entropy.problem import Problem
from kernels.linear_cross_entropy.tail import gradients as steps
from kernels.linear_cross_entropy.tail import operators, weight_first_order
from kernels.linear_cross_entropy.tail.blocks import plan_blocks
from tests.linear_cross_entropy.cases import error, make_problem, mean_upstream, oracle
from tests.linear_cross_entropy.tail_runs import EVERY_PAIR, TILE, per_token, run, tree, use_method

KEPT = {name: 6 + place for place, name in enumerate(operators.KEPT)}  # after the statistics and the packed count
VARIANTS = pytest.mark.parametrize(
    ("settings", "ordered"),
    [
        (dict(), False),
        (dict(beta=0.1, bias=True, ignored=30), True),
        (dict(softcap=5.0, ignored=30), True),
        (dict(beta=0.1, softcap=5.0, bias=True), False),
    ],
    ids=str,
)


@pytest.fixture(autouse=True)
def method(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    use_method(monkeypatch)
    return functools.partial(use_method, monkeypatch)


@pytest.fixture
def corrected_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for user in ("api", "kept_order"):
        module = sys.modules[f"kernels.linear_cross_entropy.{user}"]
        monkeypatch.setattr(module, "tail_tile_classes", lambda *_, **__: TILE)


def arguments(problem: Problem, order: Tensor | None, pack: bool = True) -> tuple[Any, ...]:
    """Of tail_forward."""
    return (
        problem.input, problem.weight, problem.bias, problem.target, order, None,
        torch.full((9,), float("nan")).double(),
        problem.label_smoothing, problem.ignore_index, problem.softcap, pack, TILE, 3e-2, False, True, True, True,
    )  # fmt: skip


@VARIANTS
def test_what_the_forward_remembers_of_tiles(settings: dict, ordered: bool) -> None:
    """Against fp64: tile masses, distances from the model's shape, never too small, and a softcap's slopes."""
    problem = make_problem("zipf", 100, 40, 700, **{**settings, "ignored": 0})
    order = tree(problem) if ordered else None
    outputs = operators.tail_forward(*arguments(problem, order))
    V, T = 700, 6
    place = torch.arange(V) if order is None else order
    z = problem.input.double() @ problem.weight.double()[place].t()
    z += 0.0 if problem.bias is None else problem.bias.double()[place]
    slope = torch.ones_like(z)
    if problem.softcap:
        t = torch.tanh(z / problem.softcap)
        z, slope = problem.softcap * t, 1 - t * t
    shape = outputs[KEPT["shape"]].double().flatten()  # of one group
    parts = zip(z.split(TILE, 1), slope.split(TILE, 1), shape.split(TILE), strict=True)
    for tile, (logits, slopes, q) in enumerate(parts):
        lse, residual = (outputs[KEPT[name]].view(T, -1)[tile] for name in ("tile_lse", "residual"))
        torch.testing.assert_close(lse.double(), logits.logsumexp(1), rtol=1e-5, atol=1e-5)
        p = logits.softmax(1) * slopes
        distance = (p / p.sum(1, keepdim=True) - q).norm(dim=1)
        assert abs(float(q.sum()) - 1) < 1e-5
        # The interpreter cuts bf16 off, by 0.8 %, where a GPU rounds. 2e-3: a floor of a thousandth, sums in fp32
        assert bool((residual >= 0.996 * distance - 1e-6).all()) and bool((residual <= 1.01 * distance + 2e-3).all())
        if problem.softcap:
            found = outputs[KEPT["mass_slope"]].view(T, -1)[tile]
            torch.testing.assert_close(found.double(), p.sum(1), rtol=9e-3, atol=1e-6)
        if problem.softcap and problem.label_smoothing:  # of whole tiles, the ragged one's padding included
            found = outputs[KEPT["mean_slope"]].view(T, -1)[tile]
            torch.testing.assert_close(found.double(), slopes.sum(1) / TILE, rtol=9e-3, atol=1e-6)


@VARIANTS
def test_routing_against_plain_torch(settings: dict, ordered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Active pairs are those above their tile's threshold and those of targets; all else is in the tail."""
    problem = make_problem("zipf", 150, 40, 900, **settings)
    seen: dict[str, Any] = {}

    def watch(name: str) -> None:
        original = getattr(steps, name)

        def call(*given: Any) -> Any:
            seen[name] = given, original(*given)
            return seen[name][1]

        monkeypatch.setattr(steps, name, call)

    watch("route")
    watch("list_pairs")
    run(problem, per_token(problem), order=tree(problem) if ordered else None)
    (_, statistics, tiles, _, target, upstream, _, block_rows), routing = seen["route"]
    assert tiles.lse.shape == (8, 120 if settings.get("ignored") else 150)
    mass = (tiles.lse - statistics.lse).exp() * (1.0 if tiles.mass_slope is None else tiles.mass_slope.float())
    weighted = upstream.p_scale * mass
    holds = (target // TILE == torch.arange(8)[:, None]) & (upstream.loss != 0)
    active = holds | (weighted.abs() * tiles.residual.float() > routing.threshold[:, None])
    assert 0 < int(active.sum()) < active.numel()
    assert torch.equal(routing.counts, active.sum(1).to(torch.int32))
    blocks = -(-routing.counts // block_rows)
    assert torch.equal(routing.first_block[:9], torch.nn.functional.pad(blocks.cumsum(0), (1, 0)).to(torch.int32))
    torch.testing.assert_close(routing.tail, torch.where(active, 0.0, weighted), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(routing.tail_mass, routing.tail.sum(1), rtol=1e-5, atol=1e-7)
    if routing.flat_tail is not None:
        flat = torch.where(active, 0.0, upstream.loss * tiles.mean_slope.float())
        torch.testing.assert_close(routing.flat_tail, flat, rtol=1e-5, atol=1e-9)
    tokens, tile_of_block = seen["list_pairs"][1]
    assert torch.equal(tile_of_block, torch.arange(8, dtype=torch.int32).repeat_interleave(blocks))
    for tile, listed in enumerate(tokens.split((block_rows * blocks).tolist())):
        wanted = active[tile].nonzero()[:, 0].to(torch.int32)
        padding = torch.full((len(listed) - len(wanted),), -1, dtype=torch.int32)
        assert torch.equal(listed, torch.cat([wanted, padding]))


@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=40), most=st.integers(0, 30))
def test_plans_cover_every_tile_once(sizes: list[int], most: int) -> None:
    first_block = [sum(sizes[:tile]) for tile in range(len(sizes) + 1)]
    ranges = plan_blocks(first_block, most)
    assert [tile for start, stop in ranges for tile in range(start, stop)] == list(range(len(sizes)))
    for start, stop in ranges:
        assert stop - start == 1 or first_block[stop] - first_block[start] <= most


def test_many_slices_of_tiles_are_one(monkeypatch: pytest.MonkeyPatch, method) -> None:
    """Scratch for one block of pairs at a time: every tile is a slice."""
    problem = make_problem("zipf", 100, 40, 700, beta=0.1, bias=True)
    upstream = per_token(problem)
    method(threshold=1e-3)
    whole = run(problem, upstream).gradients
    monkeypatch.setattr(steps, "GATHER_BYTES", 1)
    sliced = run(problem, upstream).gradients
    assert all(torch.equal(getattr(whole, name), getattr(sliced, name)) for name in ("weight", "bias"))
    assert error(sliced.input, whole.input) < 1e-6


@VARIANTS
def test_fakes_have_the_shapes_of_the_operators(settings: dict, ordered: bool) -> None:
    problem = make_problem("zipf", 70, 40, 300, **settings)
    given = arguments(problem, tree(problem) if ordered else None)
    outputs = operators.tail_forward(*given)
    needs = (True, problem.bias is None, problem.bias is not None)
    nothing = torch.zeros(70)
    backward = (nothing + 1, nothing, *given[:6], *outputs[1:], *given[7:], *needs)
    real = *outputs, *operators.tail_backward(*backward)
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(x) if isinstance(x, Tensor) else x for x in given]
        fake_backward = [mode.from_tensor(x) if isinstance(x, Tensor) else x for x in backward]
        faked = *operators.tail_forward(*fake), *operators.tail_backward(*fake_backward)
    for name, a, b in zip([*"luMtk"] * 8, real, faked, strict=False):
        assert (a.shape, a.dtype, a.device, a.stride()) == (b.shape, b.dtype, b.device, b.stride()), name
    assert len(real) == len(faked)


def test_the_forward_passes_torchs_own_checks() -> None:
    problem = make_problem("zipf", 70, 40, 300, beta=0.1)
    given = problem.input.requires_grad_(), problem.weight.requires_grad_(), *arguments(problem, None)[2:]
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.linear_cross_entropy.tail_forward.default, given, test_utils=checks)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("choose", [True, False])
def test_a_token_that_is_no_number_is_not_hidden(bad: float, choose: bool) -> None:
    """Its loss and its gradients are nan, as are the other tokens' where a model is forced on them; auto goes dense."""
    problem = make_problem("zipf", 100, 40, 700, beta=0.1)
    problem.input[5] = bad
    upstream, rest = mean_upstream(problem), torch.arange(100) != 5
    statistics, exact = oracle(problem, upstream)
    found = run(problem, upstream, choose=choose)
    assert found.outputs[0][5].isnan() and found.gradients.input[5].isnan().all()
    torch.testing.assert_close(found.outputs[0][rest], statistics.loss[rest].float(), rtol=2e-5, atol=2e-5)
    assert found.gradients.weight.isnan().all() and exact.weight.isnan().all()
    others = found.gradients.input[rest]
    assert error(others, exact.input[rest]) < 3e-6 if choose else bool(others.isnan().all())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_function(reduction: str, corrected_on_cpu: None, method) -> None:
    problem = make_problem("zipf", 100, 40, 700, beta=0.1, bias=True, ignored=30)
    leaves = [t.requires_grad_() for t in (problem.input.view(4, 25, 40), problem.weight, problem.bias)]
    method(threshold=EVERY_PAIR)
    loss, lse, nll, stats = linear_cross_entropy(
        leaves[0], leaves[1], problem.target.view(4, 25), linear_bias=leaves[2], label_smoothing=0.1,
        gradient="corrected", reduction=reduction, vocabulary_order=tree(problem),
        return_lse=True, return_nll=True, return_stats=True,
    )  # fmt: skip
    assert stats.path == "not run" and lse.shape == nll.shape == (4, 25) and not nll.requires_grad
    given = per_token(problem) if reduction == "none" else problem.counted * 0.7
    scale = float(problem.counted.sum()) if reduction == "mean" else 1.0
    found = torch.autograd.grad((loss.flatten() * (given if reduction == "none" else 0.7)).sum(), leaves)
    statistics, exact = oracle(problem, torch.where(problem.counted, given / scale, 0.0))
    expected = (statistics.loss * problem.counted / scale) if reduction == "none" else statistics.loss.sum() / scale
    torch.testing.assert_close(loss.flatten().double(), expected.flatten(), rtol=2e-5, atol=2e-5)
    for value, wanted in zip(found, (exact.input.view(4, 25, 40), exact.weight, exact.bias), strict=True):
        assert error(value, wanted) < 3e-6
    assert stats.path == "corrected" and stats.active_fraction == 1.0 and "path='corrected'" in repr(stats)


@pytest.mark.parametrize(("gradient", "fused"), [("exact", False), ("filtered", False), ("auto", True)])
def test_what_is_not_tail_corrected(gradient: str, fused: bool, corrected_on_cpu: None) -> None:
    problem = make_problem("zipf", 100, 40, 700)
    loss, stats = linear_cross_entropy(
        problem.input, problem.weight.requires_grad_(), problem.target,
        gradient=gradient, fused=fused, return_stats=True,
    )  # fmt: skip
    loss.backward()
    assert stats.path == "dense" and stats.input_bound != stats.input_bound


def test_compiles_without_a_graph_break(corrected_on_cpu: None) -> None:
    torch._dynamo.reset()
    problem = make_problem("zipf", 100, 40, 700)
    leaves, order = [problem.input.requires_grad_(), problem.weight.requires_grad_()], tree(problem)

    def step(input: Tensor, weight: Tensor, order: Tensor) -> Tensor:
        return 0.7 * linear_cross_entropy(
            input * 1.5, weight, problem.target, label_smoothing=0.1, gradient="corrected", vocabulary_order=order
        )

    plain = torch.autograd.grad(step(*leaves, order), leaves)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(*leaves, order), leaves)
    for a, b in zip(found, plain, strict=True):
        assert error(a, b) < 1e-5


def test_the_module_keeps_an_order(corrected_on_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem("zipf", 100, 40, 700)
    input, weight = problem.input, problem.weight.requires_grad_()
    loss = LinearCrossEntropyLoss(gradient="auto", order_interval=2, gradient_tolerance=0.03)
    with torch.no_grad():
        loss(input, weight, problem.target)
    assert loss.vocabulary_order is None  # no gradient needs it
    orders = []
    for _ in range(4):
        value = loss(input, weight, problem.target)
        orders.append(loss.vocabulary_order)
    assert orders[0] is orders[1] and orders[2] is orders[3] and orders[1] is not orders[2]
    assert torch.equal(orders[0].sort().values, torch.arange(700))
    settings = {"gradient": "auto", "gradient_tolerance": 0.03}
    wanted = linear_cross_entropy(input, weight, problem.target, vocabulary_order=orders[3], **settings)
    assert torch.equal(value, wanted)
    other = weight[:600].detach().requires_grad_()
    loss(input, other, problem.target.clamp(max=599))
    assert loss.vocabulary_order.shape == (600,)  # a head of another size has an order of its own


def test_an_order_is_kept_only_where_it_leaves_fewer_pairs(corrected_on_cpu: None) -> None:
    """Classes that already lie as a tree lays them need none; shuffled they do."""
    problem = make_problem("zipf", 128, 64, 2048)  # 11 % of the pairs are active in the tree's order, 25 % shuffled
    settings = dict(gradient="auto", gradient_tolerance=0.05)
    shuffled = torch.randperm(2048, generator=torch.Generator().manual_seed(0))
    for classes, expected in ((tree(problem), False), (shuffled, True)):
        module = LinearCrossEntropyLoss(**settings)
        weight, target = problem.weight[classes], classes.argsort()[problem.target]
        module(problem.input.requires_grad_(), weight, target)
        assert (module.vocabulary_order is not None) == expected
        module.refresh_order(problem.input, weight)  # which has no targets to see its worth by
        assert module.vocabulary_order is not None


@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_what_is_kept_beside_it_comes_out_of_the_scratch(softcap: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gathered dz takes GATHER_BYTES and as much as dE, less the two statistics, centres and pulls of a softcap.

    Or, without one, less C times the tokens' directions, of dC's first-order term.
    """
    problem = make_problem("zipf", 150, 40, 900, beta=0.1, softcap=softcap)
    blocks: list[int] = []
    monkeypatch.setattr(weight_first_order, "LEAST_EXPLAINED", 0.0)
    monkeypatch.setattr(steps, "GATHER_BYTES", 600_000)
    monkeypatch.setattr(steps, "LEAST_GATHER_BYTES", 0)
    monkeypatch.setattr(steps, "plan_blocks", lambda first, most: blocks.append(most) or plan_blocks(first, most))
    run(problem, per_token(problem))
    T, itemsize, R = 8, problem.input.element_size(), weight_first_order.most_directions(40)
    kept = 2 * 2 * T * 150 + T * 40 * (itemsize + 4) if softcap else 900 * R * itemsize
    assert blocks == [(600_000 + problem.input.nbytes - kept) // (64 * TILE * itemsize)]
