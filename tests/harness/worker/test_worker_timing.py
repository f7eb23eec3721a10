"""Settling: what the first call costs is seen, and nothing is sampled before it is over."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from harness.case import Case
from harness.worker.call import Call
from harness.worker.inputs import draw
from harness.worker.timing import lead_in, nothing, sample, settle, stopwatch
from implementations.baseline import eager_loss

CASE = Case(tokens=4, hidden_size=8, vocab_size=32, dtype="float32", inputs="gaussian")


class SlowAtFirst:
    """Takes long for its first call of each grad mode, as something that compiles for each."""

    def __init__(self, seconds: float) -> None:
        self.left = {True: seconds, False: seconds}

    def __call__(self, *arguments: Any, **settings: Any) -> torch.Tensor:
        time.sleep(self.left[torch.is_grad_enabled()])
        self.left[torch.is_grad_enabled()] = 0.0
        return eager_loss(*arguments, **settings)


def bound(loss_function: Any) -> Call:
    tensors = draw(CASE, torch.device("cpu"))
    tensors.input.requires_grad_(True)
    tensors.linear_weight.requires_grad_(True)
    return Call(loss_function, CASE, tensors)


def test_the_first_call_is_timed_with_what_it_compiles_and_settling_with_all_of_it() -> None:
    first_call_s, settle_s = settle(bound(SlowAtFirst(0.3)), torch.device("cpu"))
    assert 0.3 <= first_call_s <= settle_s - 0.3  # the first no-grad call is not in it
    assert settle_s >= 0.6


def test_a_loss_that_breaks_the_contract_does_not_settle() -> None:
    with pytest.raises(TypeError, match="returned NoneType, not a tensor"):
        settle(bound(lambda *arguments, **settings: None), torch.device("cpu"))


def test_the_lead_in_comes_right_before_each_of_the_two_timed_calls() -> None:
    happened: list[str] = []

    class Watch:
        def start(self) -> None:
            happened.append("start")

        def mark(self) -> None:
            happened.append("mark")

        def elapsed_ms(self) -> list[float]:
            return [1.0] * (2 if happened[-2:] == ["mark", "mark"] else 1)

    sample(bound(eager_loss), Watch(), lambda: happened.append("lead-in"))
    assert happened == ["lead-in", "start", "mark", "lead-in", "start", "mark", "mark"]


def test_there_is_none_on_a_cpu_nor_unless_asked_for() -> None:
    tensors = draw(CASE, torch.device("cpu"))
    assert lead_in(tensors.input, tensors.linear_weight, 50.0, stopwatch(torch.device("cpu"))) is nothing
    assert lead_in(tensors.input, tensors.linear_weight, 0.0, stopwatch(torch.device("cpu"))) is nothing
