"""A timed sample says how often it asked the device for memory, and the first of a turn does not."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from harness.case import Case
from harness.worker import session as sessions
from harness.worker.session import Sessions

CASE = Case(tokens=4, hidden_size=8, vocab_size=32, dtype="float32", inputs="gaussian")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("harness.worker.device.limit_memory", lambda device, fraction: None)
    worker = Sessions()
    common = {"case": CASE.model_dump(mode="json"), "device": "cpu", "memory_fraction": 0.9}
    worker.handle({"do": "open", "path": "implementations.baseline:eager_loss", "options": {}, **common})
    return worker._session


def count(monkeypatch: pytest.MonkeyPatch, in_samples: list[int]) -> None:
    """Makes each sample that is taken ask the device so often."""
    before_and_after = itertools.chain.from_iterable((100 * k, 100 * k + n) for k, n in enumerate(in_samples))
    monkeypatch.setattr(sessions, "device_allocations", lambda device: next(before_and_after))


def test_a_first_sample_that_asks_is_taken_again_and_later_ones_are_told(
    opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[float] = []
    sample = sessions.timing.sample

    def recorded(*arguments: Any) -> Any:
        taken = sample(*arguments)
        timed.append(taken[0])
        return taken

    monkeypatch.setattr(sessions.timing, "sample", recorded)
    count(monkeypatch, [3, 0, 2])
    turn = opened.turn(2)
    assert turn["device_allocations"] == [0, 2]
    assert turn["fwd_no_grad_ms"] == timed[1:] and len(timed) == 3


def test_a_row_that_always_asks_says_so(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    count(monkeypatch, [1, 1, 1])
    assert opened.turn(2)["device_allocations"] == [1, 1]


def test_nothing_is_told_on_a_cpu(opened: Any) -> None:
    assert "device_allocations" not in opened.turn(2)
