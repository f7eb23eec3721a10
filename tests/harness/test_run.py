"""Runs of small suites on the CPU, through the command line, with implementations that misbehave.

Those whose gradients or inputs are wrong in other ways are in selftest/test_selftest.py, which runs them whole too.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.running import HARNESS, harness, records

pytestmark = pytest.mark.takes_s(60)
PLANTED = """\
name: planted
description: one of each kind of failure
device: cpu
grid: {tokens: 16, hidden_size: 16, vocab_size: 64, dtype: float32, inputs: gaussian, label_smoothing: 0.1}
implementations:
  - lower-bound
  - baseline
  - {name: raises, path: "tests.harness.planted:raises"}
  - {name: dies, path: "tests.harness.planted:dies"}
  - {name: dies-later, path: "tests.harness.planted:dies_later"}
  - {name: eats-memory, path: "tests.harness.planted:eats_memory"}
  - {name: wrong, path: "tests.harness.planted:wrong"}
  - {name: cheats-without-grad, path: "tests.harness.planted:cheats_without_grad"}
  - {name: detached, path: "tests.harness.planted:detached"}
  - {name: no-tensor, path: "tests.harness.planted:no_tensor"}
  - {name: wrong-shape, path: "tests.harness.planted:wrong_shape"}
  - {name: dies-and-leaves-a-child, path: "tests.harness.planted:dies_and_leaves_a_child"}
  - {name: missing-library, path: "tests.harness.planted:missing_library"}
  - {name: refuses, path: "tests.harness.planted:refuses"}
  - {name: no-implementation, path: "tests.harness.planted:no_implementation"}
  - {name: no-module, path: "tests.harness.nowhere:loss"}
  - {name: slow-at-first, path: "tests.harness.planted:slow_at_first"}
  - {name: talkative, path: "tests.harness.planted:talkative"}
  - {name: talks-nonsense, path: "tests.harness.planted:talks_nonsense"}
  - {name: right, path: "tests.harness.planted:right"}
measurement: {minimum_rounds: 6, samples_per_turn: 5, case_budget_s: 1}
limits: {timeout_s: 60} # enough for as many workers to start on two slow cores
expectations:
  - implementation:
      [raises, dies, dies-later, dies-and-leaves-a-child, detached, no-tensor, wrong-shape, no-implementation,
       no-module, talks-nonsense]
    status: crashed
    reason: planted
  - {implementation: [eats-memory], status: out_of_memory, reason: planted}
  - implementation: [wrong, cheats-without-grad]
    status: disagrees
    reason: planted
"""

HANGING = """\
name: hanging
description: one that never answers, between two that do
device: cpu
grid: {tokens: 16, hidden_size: 16, vocab_size: 64, dtype: float32, inputs: gaussian}
implementations:
  - baseline
  - {name: hangs, path: "tests.harness.planted:hangs"}
  - {name: right, path: "tests.harness.planted:right"}
measurement: {minimum_rounds: 4, samples_per_turn: 5, case_budget_s: 1}
limits: {timeout_s: 30}
expectations: [{implementation: hangs, status: timeout, reason: planted}]
"""


@pytest.fixture(scope="module", autouse=True)
def hanging(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """Under way: it waits for half a minute, which the other tests fill."""
    root = tmp_path_factory.mktemp("hanging")
    (root / "suite.yaml").write_text(HANGING)
    command = [*HARNESS, "run", str(root / "suite.yaml"), "--out", str(root / "run")]
    with (root / "stderr").open("w") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr, text=True)
    yield root / "run", process
    process.terminate()  # where nobody waited
    process.wait()


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    root = tmp_path_factory.mktemp("planted")
    (root / "suite.yaml").write_text(PLANTED)
    return root / "run", harness("run", root / "suite.yaml", "--out", root / "run")


def test_every_failure_gets_its_row_while_the_others_finish(planted: tuple[Path, Any]) -> None:
    directory, done = planted
    found = {r.implementation: (r.status.value, r.reason or "") for r in records(directory)}
    expected = {
        "lower-bound": ("ok", ""),
        "baseline": ("ok", ""),
        "raises": ("crashed", "ZeroDivisionError: planted"),
        "dies": ("crashed", "killed by SIGSEGV during 'settle'"),
        "dies-later": ("crashed", "killed by SIGSEGV during 'turn' (in round "),
        "eats-memory": ("out_of_memory", "can't allocate memory"),
        "wrong": ("disagrees", "grad_input"),
        "cheats-without-grad": ("disagrees", "without grad, loss"),
        "detached": ("crashed", "the loss carries no gradient: was it detached?"),
        "no-tensor": ("crashed", "returned NoneType, not a tensor"),
        "wrong-shape": ("crashed", "returned shape (16,); reduction mean wants ()"),
        "dies-and-leaves-a-child": ("crashed", "killed by SIGSEGV during 'settle'"),
        "missing-library": ("unavailable", "pip install 'a-library-nobody-has==1.0'"),
        "refuses": ("unsupported", "does not do that"),
        "no-implementation": ("crashed", "not int"),
        "no-module": ("crashed", "tests.harness.nowhere"),
        "talkative": ("ok", ""),
        "talks-nonsense": ("crashed", "figures: share is nan; it must be a finite number"),
        "right": ("ok", ""),
    }
    for name, (status, words) in expected.items():
        assert found[name][0] == status, (name, found[name])
        assert words in found[name][1], (name, found[name])
    assert done.returncode == 0, done.stderr  # all of it was expected


def test_what_an_implementation_says_of_itself_is_shown(planted: tuple[Path, Any]) -> None:
    directory, done = planted
    told = {r.implementation: r.agreement.figures for r in records(directory) if r.agreement}
    assert told["talkative"] == {"share": 0.25, "tokens": 16.0} and told["right"] == {}
    _, _, after = done.stdout.partition("What the implementations say of themselves, not judged:")
    line = next(line for line in after.splitlines() if line.startswith("| talkative"))
    assert [cell.strip() for cell in line.strip("|").split("|")] == ["talkative", "0.1", "0.25", "16"]


def test_the_table_is_on_stdout_and_progress_on_stderr(planted: tuple[Path, Any]) -> None:
    directory, done = planted
    assert "| baseline" in done.stdout
    assert "case 1 of 1" in done.stderr
    assert "| baseline" not in done.stderr
    assert (directory / "report.md").read_text().strip() == done.stdout.strip()


def test_the_log_says_who_did_what_and_when(planted: tuple[Path, Any]) -> None:
    directory, _ = planted
    lines = [line.split(maxsplit=2) for line in (directory / "logs/progress.log").read_text().splitlines()]
    begun = [float(second) for second, _, _ in lines]
    assert begun == sorted(begun)
    told = [what for _, _, what in lines]
    assert told[0] == "case 1  all  start"
    assert (
        told.index("case 1  right  settle")
        < told.index("case 1  right  round 6")
        < told.index("case 1  right  agreement")
    )


def test_samples_are_raw_and_enough(planted: tuple[Path, Any]) -> None:
    (row,) = (r for r in records(planted[0]) if r.implementation == "right")
    assert row.times is not None
    assert len(row.times.fwd_bwd_ms) >= 20
    assert len(set(row.times.fwd_bwd_ms)) > 1
    assert len(row.gemm_ms) >= 20
    assert row.memory is None  # a CPU has no allocator statistics
    assert all(
        total == pytest.approx(forward + backward)
        for total, forward, backward in zip(row.times.fwd_bwd_ms, row.times.fwd_ms, row.times.bwd_ms, strict=True)
    )


def test_samples_of_a_row_that_dies_in_its_turn_are_kept(planted: tuple[Path, Any]) -> None:
    (row,) = (r for r in records(planted[0]) if r.implementation == "dies-later")
    found = re.search(r"in round (\d+), after (\d+) samples", row.reason or "")
    assert found is not None and row.times is not None
    played, taken = int(found[1]) - 1, int(found[2])
    assert 0 < taken == 5 * played == len(row.times.fwd_bwd_ms)
    assert row.times.round[-1] == played - 1


def test_the_reference_was_measured_twice_and_the_probes_in_every_round(planted: tuple[Path, Any]) -> None:
    (row,) = (r for r in records(planted[0]) if r.implementation == "baseline")
    assert row.times is not None and row.again is not None and row.probes is not None
    assert row.again.round == row.times.round[: len(row.again.round)]
    assert row.probes.round[-1] >= row.times.round[-1]
    assert len(row.probes.copy_ms) == len(row.gemm_ms)


def test_what_the_first_call_costs_is_reported_apart(planted: tuple[Path, Any]) -> None:
    (row,) = (r for r in records(planted[0]) if r.implementation == "slow-at-first")
    assert row.times is not None
    assert row.times.first_call_s is not None
    assert row.times.first_call_s >= 1.5
    assert max(row.times.fwd_bwd_ms) < 1500


def test_dead_workers_leave_no_process(planted: tuple[Path, Any]) -> None:
    assert _workers_of(planted[0]) == []


def _workers_of(directory: Path) -> list[Path]:
    return [p for p in Path("/proc").iterdir() if p.name.isdigit() and _is_worker_of(p, directory)]


def _is_worker_of(process: Path, directory: Path) -> bool:
    try:
        return str((process / "fd" / "2").readlink()).startswith(str(directory))
    except OSError:
        return False


def test_json_report_has_a_row_per_implementation(planted: tuple[Path, Any]) -> None:
    rows = json.loads(harness("report", planted[0], "--format", "json").stdout)
    assert len(rows) == 20
    assert next(row for row in rows if row["implementation"] == "talkative")["figures"]["share"] == 0.25
    by_name = {row["implementation"]: row for row in rows}
    assert by_name["right"]["fwd_bwd_ms"] > 0
    assert by_name["right"]["samples"] >= 20
    assert by_name["wrong"]["grad_input_error"] == pytest.approx(0.1, rel=1e-2)
    assert by_name["dies"]["fwd_bwd_ms"] is None


def test_records_say_which_code_they_measured(planted: tuple[Path, Any]) -> None:
    (row,) = (r for r in records(planted[0]) if r.implementation == "right")
    assert row.path == "tests.harness.planted:right"
    assert row.source_sha256 == hashlib.sha256(Path("tests/harness/planted.py").read_bytes()).hexdigest()
    assert row.provenance.commit is not None


def test_unexpected_failures_decide_the_exit_code(tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    plain = PLANTED.split("measurement", maxsplit=1)[0]
    suite.write_text(plain + "measurement: {phases: [agreement]}")
    wrong = harness("run", suite, "--only", "lower-bound", "--only", "wrong", "--out", tmp_path / "wrong")
    assert wrong.returncode == 3, wrong.stderr
    both = harness("run", suite, "--only", "wrong", "--only", "raises", "--out", tmp_path / "both")
    assert both.returncode == 4, both.stderr


def test_a_hanging_worker_is_ended_while_the_others_finish(hanging: tuple[Path, subprocess.Popen[str]]) -> None:
    """The last test: it waits for a run that began before the first."""
    directory, process = hanging
    assert process.wait(timeout=180) == 0, (directory.parent / "stderr").read_text()
    found = {r.implementation: r for r in records(directory)}
    assert found["hangs"].status == "timeout"
    assert found["hangs"].reason == "no answer to 'settle' within 30 s"
    assert found["hangs"].times is None or found["hangs"].times.fwd_bwd_ms == []
    assert all(found[name].status == "ok" for name in ("baseline", "right"))
    assert found["right"].times is not None and len(found["right"].times.fwd_bwd_ms) >= 20
    assert _workers_of(directory) == []
    rows = json.loads(harness("report", directory, "--format", "json").stdout)
    assert {row["implementation"] for row in rows if row["fwd_bwd_ms"] is None} == {"hangs"}
