"""What an implementation keeps from call to call is fitted to other tokens than those that are timed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.case import Case
from harness.worker.session import Sessions
from implementations.baseline import eager_loss
from implementations.contract import Implementation
from implementations.registry import REGISTRY, load
from kernels.linear_cross_entropy import kept_order

CASE = Case(tokens=2048, hidden_size=8, vocab_size=64, dtype="float32", inputs="gaussian")


class Keeps:
    """Right; remembers the batches that it saw, and whether it was called before it was prepared."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, torch.Tensor, torch.Tensor]] = []

    def __call__(self, input: Any, linear_weight: Any, target: Any, **settings: Any) -> torch.Tensor:
        self.seen.append(("call", input.detach().clone(), linear_weight.detach().clone()))
        return eager_loss(input, linear_weight, target, **settings)

    def prepare(self, input: Any, linear_weight: Any, target: Any, **settings: Any) -> None:
        assert set(settings) == {"linear_bias", "label_smoothing", "ignore_index", "softcap", "reduction"}
        assert not input.requires_grad
        self.seen.append(("prepare", input.clone(), linear_weight.detach().clone()))


keeps = Implementation(build=Keeps)


@pytest.fixture(autouse=True)
def no_limit_on_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker limits its own process, which here is the one that runs the tests."""
    monkeypatch.setattr("harness.worker.device.limit_memory", lambda device, fraction: None)


def opened(path: str) -> Any:
    sessions = Sessions()
    common = {"case": CASE.model_dump(mode="json"), "device": "cpu", "memory_fraction": 0.9}
    sessions.handle({"do": "open", "path": path, "options": {}, **common})
    return sessions._session


def test_it_is_prepared_once_before_its_first_call_on_tokens_that_are_not_timed() -> None:
    session = opened(f"{__name__}:keeps")
    session.settle()
    session.turn(1)
    session._prepare()
    seen = session.call.loss_function.seen
    assert [what for what, _, _ in seen].index("prepare") == 0 and [what for what, _, _ in seen].count("prepare") == 1
    (_, other, head), (_, timed, same_head), *_ = seen
    assert head.equal(same_head) and other.shape == timed.shape and not other.equal(timed)


def test_without_times_it_is_prepared_before_it_is_judged() -> None:
    referee = Sessions()
    referee.handle(
        {"do": "open_referee", "case": CASE.model_dump(mode="json"), "device": "cpu", "memory_fraction": 0.9}
    )
    session = opened(f"{__name__}:keeps")
    session.agree(referee.handle({"do": "eager_errors"}), 4.0)
    assert [what for what, _, _ in session.call.loss_function.seen][:2] == ["prepare", "call"]


@pytest.fixture
def order_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps orders as on a GPU; without a look at their worth, which needs one."""
    monkeypatch.setattr(kept_order, "tail_tile_classes", lambda *_, **__: 4)
    monkeypatch.setattr(kept_order, "_is_worth_it", lambda *_: True)


@pytest.mark.usefixtures("order_on_a_cpu")
def test_ours_keeps_the_order_of_other_tokens_however_often_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[torch.Tensor] = []
    features = kept_order.logit_features
    monkeypatch.setattr(
        kept_order, "logit_features", lambda weight, tokens: orders.append(tokens) or features(weight, tokens)
    )
    session = opened(REGISTRY["ours"])
    session.settle()
    (module,) = session.call.loss_function._modules.values()
    module._kept._age = 10**6
    session.turn(2)
    assert len(orders) == 1
    assert not orders[0].equal(session.tensors.input)


@pytest.mark.usefixtures("order_on_a_cpu")
def test_ours_computes_a_new_order_now_and_then_where_nobody_prepared_it() -> None:
    """As in a training, whose first order is of random weights."""
    loss = load(REGISTRY["ours"]).build()
    weight = torch.randn(64, 8, requires_grad=True)
    settings = {"linear_bias": None, "label_smoothing": 0.0, "ignore_index": -100, "softcap": None, "reduction": "mean"}
    orders = []
    for _ in range(kept_order.FIRST_INTERVAL + 1):
        loss(torch.randn(2048, 8), weight, torch.zeros(2048, dtype=torch.int64), **settings)
        (module,) = loss._modules.values()
        orders.append(module.vocabulary_order)
    assert orders[0] is orders[-2] and orders[-1] is not orders[-2]


@pytest.mark.usefixtures("order_on_a_cpu")
def test_ours_tells_what_its_order_costs_a_call() -> None:
    session = opened(REGISTRY["ours"])
    session.settle()
    told = session.call.figures()
    assert told["ordered"] == 1.0 and told["order_ms"] > 0
    assert told["amortised_calls"] == kept_order.INTERVAL
    assert told["amortised_ms"] == pytest.approx(told["order_ms"] / kept_order.INTERVAL)
    unordered = opened(REGISTRY["ours-no-sort"])
    unordered.settle()
    assert "amortised_ms" not in unordered.call.figures()
