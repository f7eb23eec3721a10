"""A case from the first worker to the records: phases, groups, A/A, failures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from harness.case import Case
from harness.record import Provenance, Record, Status
from harness.running import scheduler
from harness.running.groups import Group
from harness.running.process import WorkerFailure
from harness.running.scheduler import CaseRunner
from harness.suite import Suite
from tests.harness.fake_worker import AGREEMENT, FakeWorker

GIB = 1 << 30
GEMMA2 = Case(tokens=8192, hidden_size=2304, vocab_size=256000)  # inputs of 1.16 GiB
PROVENANCE = Provenance(
    commit=None, dirty=None, argv=[], started="", device="cuda", device_name="a GPU", environment={}
)
SEVERAL_GROUPS = 20 * GIB  # memory for 4 workers with their inputs


@pytest.fixture(autouse=True)
def fake_workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(scheduler, "Worker", FakeWorker)
    FakeWorker.alive, FakeWorker.log = [], []
    yield
    assert FakeWorker.alive == []  # every worker was ended


def runner_of(
    *names: str, device_bytes: int = 139 * GIB, gpu: dict[str, Any] | None = None, **changes: Any
) -> CaseRunner:
    rows = ["lower-bound", "baseline", *({"name": name, "path": "a:b"} for name in names)]
    suite = Suite.model_validate({"name": "tiny", "description": "d", "implementations": rows} | changes)
    return CaseRunner(
        suite=suite,
        device="cuda",
        implementations=suite.implementations,
        provenance=PROVENANCE,
        device_bytes=device_bytes,
        gpu=gpu or {},
        logs=Path("/nonexistent"),
    )


def measure(*names: str, **settings: Any) -> dict[str, Record]:
    with closing(runner_of(*names, **settings)) as runner:
        found = runner.run(GEMMA2, lambda *_: None)
    assert [record.implementation for record in found] == ["lower-bound", "baseline", *names]
    return {record.implementation: record for record in found}


def test_a_record_has_samples_their_place_and_the_probes_of_its_rounds() -> None:
    one = measure("one")["one"]
    assert one.status is Status.OK and one.times is not None and one.probes is not None
    assert len(one.times.fwd_bwd_ms) == len(one.times.position) == len(one.times.sm_clock_mhz) == 20
    assert len(one.gemm_ms) == len(one.probes.copy_ms) == len(one.probes.throttle_reasons) == 20
    assert one.probes.round == one.times.round
    assert all(mine != theirs for mine, theirs in zip(one.times.position, one.probes.position, strict=True))
    assert one.probes.copy_bytes == GIB
    assert one.memory is not None and one.agreement is not None


def test_the_reference_is_measured_twice_unless_another_row_is_named() -> None:
    found = measure("one")
    assert found["one"].again is None and found["baseline"].again is not None
    first, second = found["baseline"].times, found["baseline"].again
    assert first is not None and second is not None
    assert first.round == second.round and first.position != second.position
    assert not set(first.fwd_bwd_ms) & set(second.fwd_bwd_ms)
    assert not any(worker == "baseline-again" and what in ("memory", "agree") for worker, what in FakeWorker.log)
    found = measure("one", twice="one")
    assert found["one"].again is not None and found["baseline"].again is None


def test_without_that_row_the_first_is_measured_twice() -> None:
    with closing(runner_of("one", "two")) as runner:
        runner.implementations = [row for row in runner.implementations if row.name in ("one", "two")]
        found = runner.run(GEMMA2, lambda *_: None)
    assert [record.again is not None for record in found] == [True, False]


def test_without_times_nothing_is_measured_twice() -> None:
    assert measure("one", measurement={"phases": ["memory", "agreement"]})["baseline"].again is None
    assert "baseline-again" not in {worker for worker, _ in FakeWorker.log}


def test_groups_have_the_reference_in_their_rounds_and_one_record_of_it() -> None:
    found = measure("one", "two", "three", "four", device_bytes=SEVERAL_GROUPS)
    assert found["baseline"].probes is not None and found["baseline"].probes.reference is None
    groups = {record.gemm_ms[0] for record in found.values() if record.gemm_ms}
    assert len(groups) == 2  # a GEMM each
    strangers = [r for r in found.values() if r.gemm_ms and r.gemm_ms != found["baseline"].gemm_ms]
    assert [record.implementation for record in strangers] == ["three", "four"]
    for record in strangers:
        assert record.times is not None and record.probes is not None and record.probes.reference is not None
        assert record.probes.reference.round == record.times.round
        assert record.probes.reference.fwd_bwd_ms != found["baseline"].times.fwd_bwd_ms
    played = [worker for worker, what in FakeWorker.log if what == "agree"]
    assert played.count("baseline") == 1


def test_a_row_that_dies_in_its_turn_leaves_the_others_alone() -> None:
    found = measure("dies", "one")
    assert (found["dies"].status, found["one"].status) == (Status.CRASHED, Status.OK)
    assert found["dies"].reason == "killed by SIGSEGV during 'turn' (in round 4, after 6 samples)"
    assert found["dies"].times is not None and len(found["dies"].times.fwd_bwd_ms) == 6
    assert found["dies"].memory is not None
    assert found["one"].times is not None and len(found["one"].times.fwd_bwd_ms) == 20


def test_out_of_memory_beside_others_is_tried_alone() -> None:
    found = measure("full", "one")
    assert found["full"].status is Status.OK  # what it came to alone
    assert found["full"].gemm_ms != found["one"].gemm_ms
    assert [what for worker, what in FakeWorker.log if worker == "full"][:4] == ["start", "open"] * 2


def test_out_of_memory_alone_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeWorker, "_settle", _no_memory)
    found = measure("one", device_bytes=1)
    assert {found[name].status for name in ("baseline", "one")} == {Status.OUT_OF_MEMORY}
    assert len([1 for worker, what in FakeWorker.log if (worker, what) == ("one", "settle")]) == 1


def _no_memory(self: FakeWorker, **_: Any) -> Any:
    raise WorkerFailure(Status.OUT_OF_MEMORY, "full")


def test_what_is_refused_has_no_turn() -> None:
    found = measure("refuses", "one")
    assert (found["refuses"].status, found["refuses"].reason) == (Status.UNSUPPORTED, "does not do that")
    assert found["refuses"].probes is None and found["one"].probes is not None
    assert [what for worker, what in FakeWorker.log if worker == "refuses"] == ["start", "open"]


def test_who_times_kernels_to_choose_one_settles_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    send = FakeWorker.send

    def recorded(self: FakeWorker, what: str, **arguments: Any) -> None:
        if what == "settle":
            busy = [name for name in sent if (name, "settle") not in FakeWorker.log]
            assert not (busy and (self.name.startswith("tunes") or any(name.startswith("tunes") for name in busy)))
            overlapping.append(len(busy))
            sent.append(self.name)
        send(self, what, **arguments)

    overlapping: list[int] = []
    monkeypatch.setattr(FakeWorker, "send", recorded)
    monkeypatch.setattr(scheduler.os, "cpu_count", lambda: 16)
    measure("one", "tunes", "two", "tunes-too")
    assert sorted(sent) == ["baseline", "baseline-again", "one", "tunes", "tunes-too", "two"]
    assert max(overlapping) == 3  # the four others, with 16 cores and 139 GiB
    overlapping.clear()
    FakeWorker.log.clear()
    sent.clear()
    measure("one", "tunes", "two", "tunes-too", device_bytes=40 * GIB)
    assert max(overlapping) == 1  # memory for two of them


def test_the_referee_s_failure_is_everybody_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeWorker, "_open_referee", _no_memory)
    found = measure("one")
    assert found["one"].status is Status.OUT_OF_MEMORY
    assert found["one"].reason == "the case could not be set up: full"


def test_what_is_faster_than_the_gpu_is_impossible_unless_it_skips_that_work() -> None:
    gpu = {"compute_capability": [9, 0], "max_sm_clock_mhz": 1980, "multiprocessors": 132}
    found = measure("instant", "instant-skips", "one", gpu=gpu)
    assert {name: found[name].status.value for name in ("instant", "instant-skips", "one")} == {
        "instant": "impossible",
        "instant-skips": "ok",
        "one": "ok",
    }
    assert found["instant-skips"].skips_work and not found["one"].skips_work
    found = measure("instant-skips", gpu=gpu | {"max_memory_clock_mhz": 3201, "memory_bus_bits": 6144})
    assert found["instant-skips"].status is Status.IMPOSSIBLE  # nobody skips reading the inputs


def test_the_floor_is_of_the_tokens_that_the_referee_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the case says: a file's targets may be ignored ones."""
    gpu = {"compute_capability": [9, 0], "max_sm_clock_mhz": 1980, "multiprocessors": 132}
    for counted, status in ((8192, Status.IMPOSSIBLE), (1, Status.OK)):
        monkeypatch.setattr(FakeWorker, "_statistics", lambda self, counted=counted: {"counted_rows": counted})
        assert measure("instant", gpu=gpu)["instant"].status is status


def test_workers_of_the_next_case_start_once_nothing_is_timed_any_more() -> None:
    with closing(runner_of("one")) as runner:
        runner.run(GEMMA2, lambda *_: None, more=True)
        happened = FakeWorker.log.copy()
        begun = [worker for worker, what in happened if what == "start"]
        assert sorted(begun) == sorted(["referee", "baseline", "one", "baseline-again"] * 2)
        last_turn = max(place for place, (_, what) in enumerate(happened) if what == "turn")
        assert [what for _, what in happened[last_turn + 1 :]][:4] == ["start"] * 4
        assert len(FakeWorker.alive) == 4
        runner.run(GEMMA2, lambda *_: None)
        assert FakeWorker.log[len(happened)][1] == "open"  # nobody had to be started
        assert not FakeWorker.alive


def test_workers_that_were_started_for_nothing_are_ended() -> None:
    with closing(runner_of("one")) as runner:
        runner.run(GEMMA2, lambda *_: None, more=True)
        assert FakeWorker.alive
    assert not FakeWorker.alive


def test_in_groups_and_on_a_cpu_nobody_starts_early() -> None:
    with closing(runner_of("one", "two", "three", "four", device_bytes=SEVERAL_GROUPS)) as runner:
        runner.run(GEMMA2, lambda *_: None, more=True)
        assert not FakeWorker.alive
    with closing(runner_of("one")) as runner:
        runner.device = "cpu"
        runner.run(GEMMA2, lambda *_: None, more=True)
        assert not FakeWorker.alive


def test_the_budget_of_the_rounds_is_not_spent_by_what_comes_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening and settling take longer than the budget; a row that is not known plays on."""
    settle, turn = FakeWorker._settle, FakeWorker._turn

    def slow(self: FakeWorker) -> Any:
        time.sleep(0.3)
        return settle(self)

    def noisy(self: FakeWorker, samples: int, lead_in_ms: float) -> Any:
        taken = turn(self, samples, lead_in_ms)
        if self.name == "noisy":
            taken |= {key: [v * (1 + 0.1 * (self.turns % 3)) for v in taken[key]] for key in taken if "wd" in key}
        return taken

    monkeypatch.setattr(FakeWorker, "_settle", slow)
    monkeypatch.setattr(FakeWorker, "_turn", noisy)
    found = measure("noisy", measurement={"case_budget_s": 0.2})
    times = found["noisy"].times
    assert times is not None and times.stopped is not None
    assert len(set(times.round)) > 10  # where a clock that began with the case would have stopped it at the minimum


def _full_when_judged_beside_others(self: FakeWorker, eager: Any, max_excess: float) -> dict[str, Any]:
    if self.name == "one" and {worker.name for worker in FakeWorker.alive} - {"one", "referee"}:
        raise WorkerFailure(Status.OUT_OF_MEMORY, "full")
    return AGREEMENT


def test_out_of_memory_in_agreement_alone_keeps_times_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeWorker, "_agree", _full_when_judged_beside_others)
    found = measure("one", "two")
    one = found["one"]
    assert one.status is Status.OK and one.agreement is not None
    assert one.gemm_ms == found["two"].gemm_ms and one.times is not None and len(one.times.fwd_bwd_ms) == 20
    assert one.memory is not None
    asked = [what for worker, what in FakeWorker.log if worker == "one"]
    assert (asked.count("open"), asked.count("settle"), asked.count("memory"), asked.count("agree")) == (2, 1, 1, 2)
    assert asked.count("turn") == 10


def test_no_memory_for_agreement_even_alone_is_a_result_with_times(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: FakeWorker, **arguments: Any) -> Any:
        return _no_memory(self) if self.name == "one" else AGREEMENT

    monkeypatch.setattr(FakeWorker, "_agree", full)
    one = measure("one")["one"]
    assert one.status is Status.OUT_OF_MEMORY and one.times is not None and len(one.times.fwd_bwd_ms) == 20
    assert [what for worker, what in FakeWorker.log if worker == "one"].count("agree") == 2


def test_workers_of_the_next_case_wait_for_rows_that_run_again() -> None:
    with closing(runner_of("full", "one")) as runner:
        runner.run(GEMMA2, lambda *_: None, more=True)
        last_answer = max(place for place, (_, what) in enumerate(FakeWorker.log) if what != "start")
        ahead = [worker for worker, _ in FakeWorker.log[last_answer + 1 :]]
        assert sorted(ahead) == sorted(["referee", "baseline", "full", "one", "baseline-again"])


@pytest.mark.parametrize(("gib", "context"), [(139, True), (16, False)])
def test_workers_of_the_next_case_import_what_they_will_run(gib: int, context: bool) -> None:
    """And make a CUDA context only where contexts are little of the device: rows are judged beside them."""
    with closing(runner_of("one", device_bytes=gib * GIB)) as runner:
        runner.run(Case(tokens=64, hidden_size=64, vocab_size=64), lambda *_: None, more=True)
        told = {worker.name: worker.told for worker in FakeWorker.alive}
    asked = {"options": {}, "device": "cuda", "context": context}
    baseline = ("warm", {"path": "implementations.baseline:baseline", **asked})
    assert told == {
        "referee": [("warm", {"path": None, **asked})],
        "baseline": [baseline],
        "baseline-again": [baseline],
        "one": [("warm", {"path": "a:b", **asked})],
    }


def test_of_two_workers_that_wait_one_is_ended() -> None:
    with closing(runner_of("one")) as runner:
        group = Group(tuple(row for row in runner.implementations if row.name == "one"))
        runner._start_ahead(group)
        runner._start_ahead(group)
        runner._keep("one", FakeWorker(Path("one.log")))
        assert sorted(worker.name for worker in FakeWorker.alive) == ["one", "referee"]
    assert not FakeWorker.alive


def test_a_worker_that_died_while_it_waited_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(runner_of("one")) as runner:
        runner.run(GEMMA2, lambda *_: None, more=True)
        waiting = [worker for worker in FakeWorker.alive if worker.name == "one"]
        begun = FakeWorker.log.count(("one", "start"))
        monkeypatch.setattr(FakeWorker, "dead", {"one"})
        found = {record.implementation: record for record in runner.run(GEMMA2, lambda *_: None)}
        assert found["one"].status is Status.OK
        assert FakeWorker.log.count(("one", "start")) == begun + 1
        assert not set(map(id, waiting)) & set(map(id, FakeWorker.alive))


def test_workers_that_keep_their_tensors_make_room_for_one_that_is_judged_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FakeWorker, "_agree", _full_when_judged_beside_others)
    found = measure("one", "two", measurement={"phases": ["agreement"]})
    assert {found[name].status for name in ("one", "two")} == {Status.OK}
