"""The search for the most tokens that fit, on memory that is known; and what is printed of it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from harness.capacity import Capacity, as_json, as_table, capacities
from harness.case import Case
from harness.record import Status
from harness.running.process import WorkerFailure
from harness.worker.capacity import UNIT, most_tokens

GIB = 1 << 30


def card(limit: int, peak: Callable[[int], float]) -> tuple[Callable[[int], int | None], list[int]]:
    asked: list[int] = []

    def peak_bytes(tokens: int) -> int | None:
        asked.append(tokens)
        needed = round(peak(tokens))
        return needed if needed <= limit else None

    return peak_bytes, asked


@pytest.mark.parametrize(
    "peak",
    [
        lambda n: 2 * GIB + 40_000 * n,  # a fused loss
        lambda n: 2 * GIB + 2_600_000 * n,  # logits
        lambda n: 2 * GIB + 40_000 * n + 256_000 * 8 * -(-n // 8 // 1024) * 1024,  # chunks: in steps
        lambda n: 2 * GIB + (n // 100) ** 2 * 1000,
    ],
)
@pytest.mark.parametrize("limit", [24 * GIB, 80 * GIB])
def test_the_most_tokens_that_fit(peak: Callable[[int], float], limit: int) -> None:
    peak_bytes, asked = card(limit, peak)
    found = most_tokens(peak_bytes, limit)
    assert found % UNIT == 0 and peak(found) <= limit
    assert peak(round(found * (1 + 1 / 64)) + UNIT) > limit
    assert len(asked) <= 16, asked
    again, asked_again = card(2 * limit, peak)
    more = most_tokens(again, 2 * limit, found)  # of a larger card what fitted before is known
    assert more >= found and min(asked_again) >= found


def test_nothing_fits_and_everything_fits() -> None:
    peak_bytes, _ = card(GIB, lambda n: 2 * GIB)
    assert most_tokens(peak_bytes, GIB) == 0
    peak_bytes, asked = card(GIB, lambda n: 1)
    assert most_tokens(peak_bytes, GIB) == 1 << 22 and len(asked) < 10


def test_a_table_with_reasons(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    class Fake:
        def __init__(self, log) -> None:
            self.name = log.stem

        def request(self, what, timeout_s, *, path, options, case, limits_bytes):
            assert what == "largest_fits" and limits_bytes[0] < 24 * GIB < limits_bytes[1] < 40 * GIB
            if self.name == "liger":
                return {"refused": "not this"}
            if self.name == "cce":
                raise WorkerFailure(Status.CRASHED, "it died")
            return {"tokens": [1024, 2048]}

        def close(self) -> None:
            pass

    monkeypatch.setattr("harness.capacity.Worker", Fake)
    case = Case(tokens=1, hidden_size=8, vocab_size=16)
    found = list(capacities(["baseline", "liger", "cce"], case, [40, 24], tmp_path, lambda _: None))
    assert found[0] == Capacity("baseline", {24: 1024, 40: 2048})
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in as_table(found, [40, 24]).splitlines()]
    assert rows[0] == ["implementation", "24 GiB", "40 GiB", ""] and rows[2] == ["baseline", "1024", "2048", ""]
    assert rows[3][3] == "unsupported: not this" and rows[4][3] == "crashed: it died"
    assert json.loads(as_json(found, case))["capacities"][0]["tokens"] == {"24": 1024, "40": 2048}
