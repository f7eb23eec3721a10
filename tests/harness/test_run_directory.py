"""Run directories: whatever moment a kill hits, no record is lost and none is there twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.record import Record
from harness.running.run_directory import Plan, RunDirectory, UnusableRun
from harness.suite import Suite

SUITE = Suite.model_validate(
    {
        "name": "tiny",
        "description": "d",
        "grid": {"tokens": [4, 8, 16], "hidden_size": 8, "vocab_size": 32},
        "implementations": ["baseline", "liger"],
    }
)
PLAN = Plan(suite=SUITE, device="cuda", device_name="a GPU", implementations=["baseline", "liger"])


@pytest.fixture
def measure(make_record: Callable[..., Record]) -> Callable[[int], list[Record]]:
    """The records of the case with so many tokens."""

    def measured(tokens: int) -> list[Record]:
        sizes = {"tokens": tokens, "hidden_size": 8, "vocab_size": 32}
        return [make_record(name, **sizes) for name in PLAN.implementations]

    return measured


def resume(directory: RunDirectory, measure: Callable[[int], list[Record]]) -> None:
    done = directory.complete_cases(PLAN)
    for case in PLAN.cases():
        if case.id not in done:
            directory.append(measure(case.tokens))


def test_cut_at_any_byte_a_run_resumes_to_the_same_records(tmp_path: Path, measure) -> None:
    whole = RunDirectory(tmp_path / "whole")
    whole.create(PLAN)
    resume(whole, measure)
    content = whole.records_path.read_bytes()
    cut = RunDirectory(tmp_path / "cut")
    cut.create(PLAN)
    for length in [*range(0, len(content), 97), len(content) - 1, len(content)]:
        cut.records_path.write_bytes(content[:length])
        resume(cut, measure)
        assert cut.records_path.read_bytes() == content, length


def test_cut_after_a_line_drops_the_half_written_case(tmp_path: Path, measure) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.create(PLAN)
    directory.append([*measure(4), measure(8)[0]])
    assert directory.complete_cases(PLAN) == {measure(4)[0].case_id}
    assert directory.records() == measure(4)


def test_a_foreign_line_is_an_error_not_a_loss(tmp_path: Path, measure) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.create(PLAN)
    directory.append(measure(4))
    directory.records_path.write_bytes(b'{"other": 1}\n' + directory.records_path.read_bytes())
    before = directory.records_path.read_bytes()
    with pytest.raises(UnusableRun, match=r"records\.jsonl:1: no record of this format"):
        directory.complete_cases(PLAN)
    assert directory.records_path.read_bytes() == before


def test_the_plan_survives_a_round_trip(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.create(PLAN)
    assert directory.plan() == PLAN
    with pytest.raises(UnusableRun, match="holds a run already"):
        directory.create(PLAN)


def test_conditions_survive_a_round_trip(tmp_path: Path) -> None:
    plan = PLAN.model_copy(update={"where": PLAN.where.model_validate({"softcap": None, "tokens": 8})})
    directory = RunDirectory(tmp_path / "run")
    directory.create(plan)
    assert [case.tokens for case in directory.plan().cases()] == [8]
    assert directory.plan().where.model_fields_set == {"softcap", "tokens"}
