"""The tail-corrected gradient's arguments, report and kept order: what a caller relies on where Triton is not."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import LinearCrossEntropyLoss, linear_cross_entropy
from kernels.linear_cross_entropy import kept_order
from kernels.linear_cross_entropy.config import tail_tile_classes, worth_modelling
from kernels.linear_cross_entropy.tail.report import FIELDS, GradientStats


def operands() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    input, weight = torch.randn(12, 8, generator=generator), torch.randn(30, 8, generator=generator)
    return input.requires_grad_(), weight.requires_grad_(), torch.randint(30, (12,), generator=generator)


BAD = [
    (dict(gradient_tolerance=0.0), "gradient_tolerance: 0.0; it must lie in"),
    (dict(gradient_tolerance=1.0), "gradient_tolerance: 1.0; it must lie in"),
    (dict(gradient_tolerance=-0.1, gradient="corrected"), "gradient_tolerance: -0.1; it must lie in"),
    (dict(gradient_tolerance=float("nan")), "gradient_tolerance: nan; it must lie in"),
    (dict(gradient_tolerance=0.1, gradient="exact"), "gradient_tolerance: 0.1 with gradient='exact'"),
    (dict(gradient_tolerance=0.1, gradient="filtered"), "gradient_tolerance: 0.1 with gradient='filtered'"),
]
BAD_ORDERS = [
    (torch.arange(29), r"vocabulary_order: shape \(29,\), dtype torch.int64; .* of the 30 classes"),
    (torch.arange(30).view(5, 6), r"vocabulary_order: shape \(5, 6\)"),
    (torch.arange(30, dtype=torch.int32), r"vocabulary_order: shape \(30,\), dtype torch.int32"),
    (torch.arange(30, device="meta"), "vocabulary_order: on meta; linear_weight is on cpu"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_settings_are_named_by_function_and_module(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(*operands(), **change)
    with pytest.raises(ValueError, match=message):
        LinearCrossEntropyLoss(**{"gradient": "auto"} | change)


@pytest.mark.parametrize(("order", "message"), BAD_ORDERS, ids=[message for _, message in BAD_ORDERS])
def test_bad_orders_are_named(order: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(*operands(), vocabulary_order=order)


@pytest.mark.parametrize("gradient", ["auto", "corrected", "exact", "filtered"])
def test_an_order_changes_nothing_where_nothing_is_corrected(gradient: str) -> None:
    input, weight, target = operands()
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    found, expected = (
        torch.autograd.grad(
            linear_cross_entropy(input, weight, target, gradient=gradient, vocabulary_order=given), (input, weight)
        )
        for given in (order, None)
    )
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("lse", [False, True])
@pytest.mark.parametrize("nll", [False, True])
def test_the_order_of_what_is_returned(fused: bool, lse: bool, nll: bool) -> None:
    input, weight, target = operands()
    found = linear_cross_entropy(
        input, weight, target, label_smoothing=0.1, fused=fused, return_lse=lse, return_nll=nll, return_stats=True
    )
    assert isinstance(found, tuple) and len(found) == 2 + lse + nll
    logits = (input @ weight.t()).detach()
    expected = [torch.nn.functional.cross_entropy(logits, target, label_smoothing=0.1)]
    expected += [logits.logsumexp(1)] if lse else []
    expected += [torch.nn.functional.cross_entropy(logits, target, reduction="none")] if nll else []
    for a, b in zip(found, expected, strict=False):
        torch.testing.assert_close(a, b)
    assert isinstance(found[-1], GradientStats)


def test_stats_before_a_backward() -> None:
    stats = GradientStats.empty()
    assert stats.path == "not run" and all(math.isnan(getattr(stats, name)) for name in FIELDS)
    assert "path='not run'" in repr(stats)
    with pytest.raises(AttributeError, match="active_pairs"):
        stats.active_pairs  # noqa: B018
    assert not hasattr(stats, "__array__")  # names that libraries probe for


@pytest.mark.parametrize("gradient", ["auto", "corrected", "exact", "filtered"])
def test_on_a_cpu_every_path_is_dense(gradient: str) -> None:
    """And so are fp32 operands on a GPU: rounding is then far below what a model would cost."""
    input, weight, target = operands()
    loss, stats = linear_cross_entropy(input, weight, target, gradient=gradient, return_stats=True)
    loss.backward()
    assert stats.path == "dense" and math.isnan(stats.input_bound) and math.isnan(stats.active_fraction)
    assert tail_tile_classes(torch.randn(4096, 64).bfloat16(), torch.randn(8192, 64).bfloat16()) == 0


def test_short_products_are_not_worth_a_model() -> None:
    """One product of the Gemma-2 head is 10^13 operations, GPT-2's 6 * 10^11, the smallest that "auto" models."""
    assert worth_modelling(8192, 256000, 2304) and worth_modelling(8192, 50257, 768)
    assert not worth_modelling(1024, 65536, 2048) and not worth_modelling(4096, 16384, 2048)


@pytest.mark.parametrize("settings", [dict(), dict(gradient="auto"), dict(fused=True)], ids=str)
def test_no_stats_are_made_where_nobody_asks(settings: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    made, empty = [], GradientStats.empty
    monkeypatch.setattr(GradientStats, "empty", staticmethod(lambda: made.append(empty()) or made[-1]))
    linear_cross_entropy(*operands(), **settings).backward()
    assert made == []
    assert linear_cross_entropy(*operands(), **settings, return_stats=True)[1] is made[0]


def test_stats_in_one_graph_are_a_clear_error() -> None:
    """Without fullgraph torch.compile breaks the graph there, and the call runs as it is written."""
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"return_stats: True under torch\.compile"):
        torch.compile(linear_cross_entropy, backend="eager", fullgraph=True)(*operands(), return_stats=True)
    torch._dynamo.reset()
    _, stats = torch.compile(linear_cross_entropy, backend="eager")(*operands(), return_stats=True)
    assert stats.path == "dense"


@pytest.mark.parametrize("module", [False, True])
def test_compiles_without_a_graph_break(module: bool) -> None:
    torch._dynamo.reset()
    input, weight, target = operands()
    order = torch.arange(29, -1, -1)
    loss = LinearCrossEntropyLoss(gradient="auto", gradient_tolerance=0.01)

    def step(input: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        if module:
            return loss(input * 2, weight, target)
        return linear_cross_entropy(
            input * 2, weight, target, gradient="auto", gradient_tolerance=0.01, vocabulary_order=order
        )

    plain = torch.autograd.grad(step(input, weight, target), (input, weight))
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(input, weight, target), (input, weight))
    for a, b in zip(found, plain, strict=True):
        torch.testing.assert_close(a, b)


BAD_MODULES = [
    (dict(order="sorted"), ValueError, "order: 'sorted'; allowed are auto, tree, average-logit, none"),
    (dict(order_interval=-1), ValueError, "order_interval: -1; it must be an integer, 0 or more"),
    (dict(order_interval=1.5), ValueError, "order_interval: 1.5"),
    (dict(vocabulary_order=None), TypeError, "vocabulary_order: no such setting"),
    (dict(token_centres=None), TypeError, "token_centres: no such setting"),
    (dict(token_groups=0), ValueError, "token_groups: 0; it must be an integer from 1 to 64"),
    (dict(orders="tree"), TypeError, "orders: no such setting; allowed are .*order, order_interval,.*token_groups"),
    (dict(gradient="fast"), ValueError, "gradient: 'fast'"),
]


@pytest.mark.parametrize(("change", "kind", "message"), BAD_MODULES, ids=[message for _, _, message in BAD_MODULES])
def test_bad_settings_of_the_module_are_named(change: dict, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        LinearCrossEntropyLoss(**{"gradient": "auto"} | change)


@pytest.mark.parametrize("order", ["auto", "tree", "average-logit", "none"])
def test_the_order_is_part_of_the_state(order: str, tmp_path) -> None:
    input, weight, _ = operands()
    module = LinearCrossEntropyLoss(gradient="auto", order=order)
    assert module.vocabulary_order is None and f"order={order!r}, order_interval=500" in repr(module)
    module.refresh_order(input, weight)
    torch.save(torch.nn.Sequential(module).state_dict(), tmp_path / "state.pt")
    other = torch.nn.Sequential(LinearCrossEntropyLoss(gradient="auto", order=order))
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    found = other[0].vocabulary_order
    if order == "none":
        assert found is None
        return
    assert torch.equal(found, module.vocabulary_order)
    assert torch.equal(found.sort().values, torch.arange(30)) and not found.requires_grad
    if order == "average-logit":
        average = (input @ weight.t()).mean(dim=0)
        assert bool((average[found].diff() <= 1e-5).all())


def test_the_age_of_an_order_is_part_of_the_state() -> None:
    module, other = LinearCrossEntropyLoss(gradient="auto"), LinearCrossEntropyLoss(gradient="auto")
    module.refresh_order(*operands()[:2])
    other.set_extra_state(module.get_extra_state() | {"_age": 499})
    assert other.get_extra_state()["_age"] == 499


def _forwards_with_a_new_order(monkeypatch: pytest.MonkeyPatch, forwards: int, **settings: Any) -> list[int]:
    monkeypatch.setattr(kept_order, "tail_tile_classes", lambda *_, **__: 4)
    kept, orders, found = kept_order.KeptOrder("tree", **settings), [], []
    for number in range(forwards):
        input, weight, target = operands()
        orders.append(kept.of(input.requires_grad_(), weight, target, {})[0])
        if number == 0 or orders[-1] is not orders[-2]:
            found.append(number)
    return found


def test_the_first_orders_are_kept_for_less_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is fitted to the weights that a training starts from is of no use soon after."""
    assert _forwards_with_a_new_order(monkeypatch, 2000) == [0, 25, 75, 175, 375, 775, 1275, 1775]
    assert _forwards_with_a_new_order(monkeypatch, 100, interval=30) == [0, 25, 55, 85]
    assert _forwards_with_a_new_order(monkeypatch, 50, interval=10) == [0, 10, 20, 30, 40]
    assert _forwards_with_a_new_order(monkeypatch, 100, interval=0) == [0]


def test_a_head_of_another_size_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_order, "tail_tile_classes", lambda *_, **__: 4)
    input, weight, target = operands()
    kept = kept_order.KeptOrder("tree")
    for _ in range(100):
        kept.of(input.requires_grad_(), weight, target, {})
    assert kept.state()["_span"] > 2 * kept_order.FIRST_INTERVAL
    kept.of(input, weight[:20], target.clamp(max=19), {})
    assert kept.state()["_span"] == kept_order.FIRST_INTERVAL


def test_a_module_on_a_cpu_computes_no_order() -> None:
    input, weight, target = operands()
    module = LinearCrossEntropyLoss(gradient="auto", reduction="sum", gradient_tolerance=0.01)
    assert torch.equal(module(input, weight, target), linear_cross_entropy(input, weight, target, reduction="sum"))
    assert module.vocabulary_order is None


def test_refreshing_leaves_no_graph_and_no_random_state_behind() -> None:
    input, weight, _ = operands()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    module = LinearCrossEntropyLoss(gradient="auto")
    module.refresh_order(input.view(3, 4, 8), weight)
    assert torch.equal(torch.rand(1), expected)
    assert module.vocabulary_order.grad_fn is None
