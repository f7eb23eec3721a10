"""What pytest-benchmark makes of samples that the harness took: they must be the very same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import ReplayTimer, load_records

ROOT = Path(__file__).parents[2]

SUITE = """\
name: replayed
description: one of each way for a cell to end
device: cpu
grid: {tokens: 16, hidden_size: 16, vocab_size: 64, dtype: float32, inputs: gaussian, label_smoothing: [0.0, 0.1]}
implementations:
  - lower-bound
  - baseline
  - {name: wrong, path: "tests.harness.planted:wrong"}
  - {name: refuses, path: "tests.harness.planted:refuses"}
  - {name: raises, path: "tests.harness.planted:raises"}
  - {name: left-out, path: "tests.harness.planted:right"}
measurement: {minimum_rounds: 10, samples_per_turn: 2, case_budget_s: 1}
expectations: [{implementation: wrong, status: disagrees, reason: planted}]
"""

REPLAYED = """\
import pytest
from harness import ReplayTimer
TIMER = ReplayTimer()
@pytest.mark.benchmark(timer=TIMER)
def test_replayed(benchmark):
    TIMER.replay(benchmark, [{samples}])
def test_with_another_timer(benchmark):
    with pytest.raises(RuntimeError, match="mark the test with"):
        TIMER.replay(benchmark, [1.0])
"""


def run_pytest(*arguments: str | Path, directory: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--benchmark-only", *map(str, arguments)]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def benchmarked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """One run of the suite through tests/benchmarks."""
    root = tmp_path_factory.mktemp("benchmarked")
    (root / "suite.yaml").write_text(SUITE)
    options: list[str | Path] = ["--harness-suite", root / "suite.yaml", "--harness-out", root / "run"]
    for name in ("baseline", "wrong", "refuses", "raises"):
        options += ["--harness-only", name]
    where = "--harness-where=label_smoothing=0.1"
    return root, run_pytest("tests/benchmarks", *options, where, f"--benchmark-json={root / 'out.json'}", "-rfs")


def found(root: Path) -> dict[str, Any]:
    return {b["extra_info"]["implementation"]: b for b in json.loads((root / "out.json").read_text())["benchmarks"]}


def test_samples_are_those_of_the_records_to_the_last_bit(benchmarked: tuple[Path, Any]) -> None:
    root, done = benchmarked
    assert set(found(root)) == {"baseline", "wrong"}, done.stdout
    for record in load_records(root / "run"):
        if record.implementation in found(root):
            assert record.times is not None
            assert found(root)[record.implementation]["stats"]["data"] == [ms / 1e3 for ms in record.times.fwd_bwd_ms]
            assert found(root)[record.implementation]["group"] == record.case_id


def test_ratios_memory_and_errors_go_with_them(benchmarked: tuple[Path, Any]) -> None:
    root, _ = benchmarked
    wrong = found(root)["wrong"]
    assert wrong["name"] == f"test_forward_and_backward[{wrong['group']}-wrong]"
    facts = wrong["extra_info"]
    assert facts["status"] == "disagrees" and facts["reference"] == "baseline"
    assert facts["fwd_bwd_to_reference_low"] <= facts["fwd_bwd_to_reference"] <= facts["fwd_bwd_to_reference_high"]
    assert facts["grad_weight_error"] == pytest.approx(0.1, rel=1e-3)  # as planted
    assert facts["gradient_floor_bytes"] == (16 + 64) * 16 * 4
    assert facts["fwd_bwd_peak_bytes"] is None  # a CPU has no allocator that counts


def test_what_failed_fails_and_what_is_not_offered_is_skipped(benchmarked: tuple[Path, Any]) -> None:
    root, done = benchmarked
    assert done.returncode == 1
    assert "1 failed, 2 passed, 1 skipped" in done.stdout
    assert "crashed: ZeroDivisionError: planted" in done.stdout
    assert "does not do that" in done.stdout
    assert f"records in {root / 'run'}" in done.stdout


def test_the_machine_is_named_for_comparisons(benchmarked: tuple[Path, Any]) -> None:
    root, _ = benchmarked
    machine = json.loads((root / "out.json").read_text())["machine_info"]["harness"]
    assert machine == load_records(root / "run")[0].provenance.environment
    assert machine["packages"]["torch"]


def test_nothing_is_measured_unless_asked_for() -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", "tests/benchmarks"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "1 skipped" in done.stdout and "a suite is measured with --benchmark-only alone" in done.stdout


def test_a_wrong_option_is_one_sentence() -> None:
    done = run_pytest("tests/benchmarks", "--harness-only", "basline")
    assert done.returncode == pytest.ExitCode.INTERRUPTED
    assert "--harness-only basline: suite 'quick' has no such implementation, did you mean 'baseline'?" in done.stdout
    assert "cells.py" not in done.stdout + done.stderr  # and no traceback


@pytest.mark.parametrize(("factor", "code"), [(1.0, 0), (1.2, 1)])
def test_comparisons_see_what_was_measured(tmp_path: Path, factor: float, code: int) -> None:
    """--benchmark-compare-fail passes for the same samples and fails for slower ones, however long the replay took."""
    samples = [1.0, 1.25, 1.5]
    test = tmp_path / "test_replayed.py"
    test.write_text(REPLAYED.format(samples=str(samples)[1:-1]))
    assert run_pytest("--benchmark-save=before", directory=tmp_path).returncode == 0
    test.write_text(REPLAYED.format(samples=str([factor * sample for sample in samples])[1:-1]))
    done = run_pytest("--benchmark-compare", "--benchmark-compare-fail=median:10%", directory=tmp_path)
    assert done.returncode == code, done.stdout
    assert ("Performance has regressed" in done.stdout + done.stderr) == bool(code)


class Fixture:
    """As much of pytest-benchmark's fixture as the timer uses, disabled as by --benchmark-disable."""

    enabled = False

    def pedantic(self, target: Any, setup: Any, rounds: int) -> None:
        setup()
        target()


def test_no_samples_are_no_benchmark() -> None:
    ReplayTimer().replay(Fixture(), [1.0])
    with pytest.raises(ValueError, match="no samples"):
        ReplayTimer().replay(Fixture(), [])
