"""Samples by round: from records, paired by the rounds that both played."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from harness.analysis.statistics.turns import Turns, arranged, gemm_turns_of, paired, turns_of
from harness.record import Record, Times

MakeRecord = Callable[..., Record]


def _times(rounds: list[int], whole_ms: list[float]) -> Times:
    half = [time_ms / 2 for time_ms in whole_ms]
    return Times(fwd_no_grad_ms=half, fwd_ms=half, bwd_ms=half, fwd_bwd_ms=whole_ms, round=rounds)


def test_samples_of_a_record_by_round(make_record: MakeRecord) -> None:
    record = make_record(times=_times([0, 0, 2, 2], [10.0, 11.0, 12.0, 13.0]), gemm_ms=None)
    turns = turns_of(record)
    assert turns is not None
    assert turns.rounds.tolist() == [0, 2]
    assert turns.values.tolist() == [[10.0, 11.0], [12.0, 13.0]]
    forward = turns_of(record, "fwd_ms")
    assert forward is not None and forward.values.tolist() == [[5.0, 5.5], [6.0, 6.5]]


def test_the_gemm_played_every_round_with_turns_of_the_same_length(make_record: MakeRecord) -> None:
    record = make_record(times=_times([0, 0, 2, 2], [10.0] * 4)).model_copy(update={"gemm_ms": [1, 1, 2, 2, 3, 3]})
    gemm, row = gemm_turns_of(record), turns_of(record)
    assert gemm is not None and row is not None
    assert gemm.values.tolist() == [[1, 1], [2, 2], [3, 3]]
    assert paired(row, gemm).values[:, 0] == pytest.approx([10 / 1, 10 / 3])  # the row sat out round 1


def test_a_record_without_times_or_gemm_has_no_turns(make_record: MakeRecord) -> None:
    assert turns_of(make_record(status="unavailable")) is None
    assert turns_of(make_record(times=Times())) is None
    assert gemm_turns_of(make_record(times=_times([0], [1.0]), gemm_ms=None)) is None


def test_only_common_rounds_are_paired() -> None:
    head = arranged("head", [0, 1, 2, 5], [2.0, 4.0, 6.0, 8.0])
    base = arranged("base", [1, 2, 3, 4, 5], [1.0, 2.0, 3.0, 4.0, 2.0])
    ratio = paired(head, base)
    assert ratio.name == "head / base"
    assert ratio.rounds.tolist() == [1, 2, 5]
    assert ratio.values[:, 0] == pytest.approx([4, 3, 4])


def test_rounds_of_other_rows_need_not_be_in_order() -> None:
    assert arranged("row", [1, 0, 1, 0], [3.0, 1.0, 4.0, 2.0]).values.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_turns_of_unequal_length_are_refused(make_record: MakeRecord) -> None:
    with pytest.raises(ValueError, match="row: turns of unequal length"):
        arranged("row", [0, 0, 1], [1.0, 2.0, 3.0])
    record = make_record("liger", times=_times([0, 0], [1.0, 1.0])).model_copy(update={"gemm_ms": [1.0, 1.0, 1.0]})
    with pytest.raises(ValueError, match="liger: 3 GEMM samples are no turns of 2"):
        gemm_turns_of(record)


@pytest.mark.parametrize(
    ("rounds", "values", "words"),
    [
        ([0, 1], [[1.0], [0.0]], "positive"),
        ([0, 1], [[1.0], [float("nan")]], "positive and finite"),
        ([1, 0], [[1.0], [1.0]], "increase"),
        ([0, 1], [[1.0]], "do not fit"),
    ],
)
def test_wrong_turns_cannot_be_made(rounds: list[int], values: list[list[float]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Turns("row", np.array(rounds), np.array(values))
