"""Records that contradict themselves cannot be made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from harness.record import Probes, Record, Status, Times
from harness.running.runs import exit_code

MakeRecord = Callable[..., Record]


def changed(record: Record, **changes: Any) -> Record:
    return Record.model_validate({**record.model_dump(), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reason": "why"}, "ok has none"),
        ({"status": "crashed"}, "every other status has one"),
        ({"status": "unsupported", "reason": "no"}, "never ran carries measurements"),
        ({"status": "disagrees", "reason": "no"}, "contradicts failures"),
        ({"agreement": None}, "nothing was compared"),
        ({"case_id": "another"}, "is not the id of the case"),
        ({"interpreted": True}, "Triton interpreter"),
        ({"status": "fine"}, "status"),
    ],
)
def test_contradictions(make_record: MakeRecord, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        changed(make_record(), **changes)


@pytest.mark.parametrize(
    ("commit", "dirty", "words"),
    [
        ("0123456789abcdef", False, "0123456789ab"),
        ("0123456789abcdef", True, "0123456789ab and changes"),
        ("0123456789abcdef", None, "0123456789ab"),
        (None, None, "unknown commit"),
    ],
)
def test_which_code_in_words(make_record: MakeRecord, commit: str | None, dirty: bool | None, words: str) -> None:
    assert make_record().provenance.model_copy(update={"commit": commit, "dirty": dirty}).code == words


def test_samples_come_in_equal_numbers() -> None:
    with pytest.raises(ValidationError, match="unequal number"):
        Times(fwd_ms=[1.0], bwd_ms=[1.0], fwd_bwd_ms=[2.0], fwd_no_grad_ms=[1.0], round=[0, 1])
    with pytest.raises(ValidationError, match="unequal number"):
        Times(fwd_ms=[1.0], bwd_ms=[1.0], fwd_bwd_ms=[2.0], fwd_no_grad_ms=[1.0], round=[0], power_w=[1.0, 2.0])
    with pytest.raises(ValidationError, match="unequal number"):
        Times(fwd_ms=[1.0], bwd_ms=[1.0], fwd_bwd_ms=[2.0], fwd_no_grad_ms=[1.0], round=[0], position=[1, 2])
    with pytest.raises(ValidationError, match="unequal number"):
        Probes(copy_ms=[1.0], round=[0, 0])


def test_records_from_before_positions_and_probes_load(make_record: MakeRecord) -> None:
    line = make_record().model_dump(mode="json", exclude={"again": True, "probes": True, "times": {"position"}})
    record = Record.model_validate(line)
    assert record.times is not None
    assert (record.times.position, record.again, record.probes) == ([], None, None)


def test_a_record_survives_its_line(make_record: MakeRecord) -> None:
    for status in Status:
        record = make_record(status=status.value)
        assert Record.model_validate_json(record.model_dump_json()) == record


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        ([("ok", None), ("unsupported", None), ("unavailable", None)], 0),
        ([("disagrees", None)], 3),
        ([("disagrees", ["disagrees"]), ("crashed", ["crashed", "timeout"])], 0),
        ([("disagrees", ["crashed"])], 3),
        ([("disagrees", None), ("out_of_memory", None)], 4),
        ([("timeout", None)], 4),
        ([("impossible", None)], 3),
        ([("ok", ["disagrees"])], 0),
    ],
)
def test_exit_codes(make_record: MakeRecord, statuses: list[tuple[str, list[str] | None]], code: int) -> None:
    rows = [make_record(status=status, expected=(e, "known") if e else None) for status, e in statuses]
    assert exit_code(rows) == code
