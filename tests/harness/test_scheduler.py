"""Who is measured beside whom, and who plays on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from harness.case import Case
from harness.process import WorkerFailure
from harness.record import Provenance, Status
from harness.scheduler import CaseRunner, Row
from harness.suite import Suite, SuiteImplementation

GIB = 1 << 30
GEMMA2 = Case(tokens=8192, hidden_size=2304, vocab_size=256000)
SUITE = {
    "name": "tiny",
    "description": "d",
    "grid": {"tokens": 4, "hidden_size": 8, "vocab_size": 32},
    "implementations": ["lower-bound", "baseline", "liger", "cce"],
}
PROVENANCE = Provenance(
    commit=None, dirty=None, argv=[], started="", device="cuda", device_name="a GPU", environment={}
)


def runner(device_bytes: int = 80 * GIB, **changes: Any) -> CaseRunner:
    suite = Suite.model_validate(SUITE | changes)
    return CaseRunner(
        suite=suite,
        device="cuda",
        implementations=suite.implementations,
        provenance=PROVENANCE,
        device_bytes=device_bytes,
        gpu={},
        logs=Path("/nonexistent"),
    )


@pytest.mark.parametrize(("gib", "sizes"), [(139, [12]), (24, [5, 5, 2]), (4, [1] * 12)])
def test_rows_that_do_not_fit_side_by_side_run_in_groups(gib: int, sizes: list[int]) -> None:
    rows = [SuiteImplementation.model_construct(name=f"r{k}", path=None, options={}) for k in range(12)]
    groups = runner(gib * GIB)._groups(GEMMA2, rows)
    assert [len(group) for group in groups] == sizes
    assert [row for group in groups for row in group] == rows


class FakeWorker:
    """Answers turns at once; slow ones vary, steady ones do not."""

    def __init__(self, steady: bool) -> None:
        self.steady = steady
        self.turns = 0

    def request(self, what: str, timeout_s: float, samples: int) -> dict[str, list[float]]:
        assert what == "turn"
        self.turns += 1
        spread = 0.0 if self.steady else 0.05 * (self.turns % 7)
        return {"fwd_bwd_ms": [1.0 + spread] * samples}


def test_beyond_the_minimum_only_unsettled_rows_the_reference_and_the_gemm_play_on() -> None:
    measuring = runner(measurement={"minimum_rounds": 10, "samples_per_turn": 2, "case_budget_s": 0.2})
    workers = {"baseline": FakeWorker(True), "liger": FakeWorker(True), "cce": FakeWorker(False)}
    rows = [Row(SuiteImplementation(name=name), worker=w, opened={"interpreted": False}) for name, w in workers.items()]  # type: ignore[arg-type]
    referee = Row(SuiteImplementation.model_construct(name="referee", path=None, options={}), worker=FakeWorker(True))  # type: ignore[arg-type]
    measuring._take_turns(GEMMA2, rows, referee, time.monotonic(), lambda *_: None)
    assert workers["liger"].turns == 10
    assert workers["cce"].turns > 10
    assert workers["baseline"].turns == workers["cce"].turns
    assert len(rows[2].samples["round"]) == 2 * workers["cce"].turns


def test_out_of_memory_beside_others_is_tried_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[list[str]] = []

    def measured(self: CaseRunner, case: Case, rows: list[SuiteImplementation], notice: Any) -> list[Any]:
        groups.append([row.name for row in rows])
        found = []
        for name in groups[-1]:
            row = Row(SuiteImplementation(name=name), opened={})
            if name == "cce" or (name == "baseline" and len(rows) > 1):
                row.fail(WorkerFailure(Status.OUT_OF_MEMORY, "full"))
            else:
                row.fail(WorkerFailure(Status.CRASHED, "stands for anything else"))
            found.append(self._record(case, row, Row(SuiteImplementation(name="liger")), {}))
        return found

    monkeypatch.setattr(CaseRunner, "_run_group", measured)
    statuses = {r.implementation: r.status for r in runner().run(GEMMA2, lambda *_: None)}
    assert groups == [["baseline", "liger", "cce"], ["baseline"], ["cce"]]
    assert statuses["baseline"] is Status.CRASHED  # what it came to alone
    assert statuses["cce"] is Status.OUT_OF_MEMORY
