"""The selftest catches what it plants on a CPU, and says so when something slips through."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.record import Memory, Times
from harness.selftest import command, planted
from harness.selftest.faults import FAULTS, Group, faults_on, suite_of
from harness.selftest.verdicts import Finding, Outcome, finding
from implementations.registry import load

pytestmark = pytest.mark.takes_s(60)
BY_NAME = {(fault.name, fault.group): fault for fault in FAULTS}
SLOWER, LEAKY = BY_NAME["slower", Group.TIMED], BY_NAME["leaky", Group.TIMED]


def test_every_fault_exists_and_has_a_suite() -> None:
    for fault in FAULTS:
        assert load(fault.path).build is not None and hasattr(planted, fault.name)
    for device in ("cuda", "cpu"):
        for group in {fault.group for fault in faults_on(device)}:
            suite = suite_of(group, device)
            assert suite.reference == suite.implementations[0].name == "right"
            assert len(suite.cases_on(device)) == 1
    assert {fault.name for fault in FAULTS} >= {
        "slower", "leaky", "zero_weight_gradient", "stale_cache", "side_stream", "drops_the_last_tile",
        "mutates_its_input", "accumulates_in_half_precision", "out_of_memory", "segmentation_fault", "hangs",
    }  # fmt: skip


def test_the_command_on_a_cpu(tmp_path: Path) -> None:
    """Run whole: the part that needs no GPU takes a minute, half of it waiting for what hangs."""
    done = subprocess.run(
        [sys.executable, "-m", "harness", "selftest", "--device", "cpu", "--out", str(tmp_path / "self")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines() if "|" in line]
    outcomes = {row[0]: row[-1] for row in rows[2:]}
    assert {name for name, outcome in outcomes.items() if outcome == "caught"} == {f.name for f in faults_on("cpu")}
    assert {name for name, outcome in outcomes.items() if outcome == "left out"} == {"slower", "leaky", "side_stream"}
    assert (tmp_path / "self" / "judged" / "records.jsonl").exists()
    again = subprocess.run(
        [sys.executable, "-m", "harness", "selftest", "--device", "cpu", "--out", str(tmp_path / "self")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert again.returncode == 2 and "holds a run already" in again.stderr


def test_what_gets_another_status_or_another_reason_slips_through(make_record) -> None:
    stale = BY_NAME["stale_cache", Group.JUDGED]
    right = make_record("right")
    assert finding(stale, [right, make_record("stale_cache")]).outcome is Outcome.MISSED
    other = make_record("stale_cache", "disagrees", reason="grad_weight: error 0.1")
    assert finding(stale, [right, other]).outcome is Outcome.MISSED
    named = make_record("stale_cache", "disagrees", reason="grad_input is not of the weights it was given: 1.4")
    assert finding(stale, [right, named]).outcome is Outcome.CAUGHT
    assert finding(stale, [right]).outcome is Outcome.MISSED
    wolf = make_record("right", "disagrees")
    assert finding(BY_NAME["right", Group.JUDGED], [wolf]).outcome is Outcome.MISSED


def test_busy_multiplies_for_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 % of 50 ms are 20 products of 0.05 ms; the tensors stay as they are, and nothing needs a gradient."""
    tensors = (torch.randn(6, 3, requires_grad=True), torch.randn(9, 3, requires_grad=True), torch.arange(6))
    before = [tensor.detach().clone() for tensor in tensors]
    taken = iter([50.0, 0.05])
    called = []

    def torch_loss(input, linear_weight, target):
        return torch.nn.functional.cross_entropy(input @ linear_weight.T, target)

    def steady_ms(work, device) -> float:
        work()  # what is timed can be called
        called.append(device.type)
        return next(taken)

    monkeypatch.setattr(planted, "_steady_ms", steady_ms)
    busy = planted.Busy(0.02, torch_loss, tensors)
    assert (busy.products, called) == (20, ["cpu", "cpu"])
    done = []
    monkeypatch.setattr(busy, "_product", lambda: done.append(1))
    busy()
    assert len(done) == 20 and not busy.output.requires_grad
    assert all(torch.equal(tensor, old) and tensor.grad is None for tensor, old in zip(tensors, before, strict=True))


def test_steady_time_is_of_one_call_among_many(monkeypatch: pytest.MonkeyPatch) -> None:
    class Watch:
        calls = 0

        def start(self) -> None:
            self.before = self.calls

        def mark(self) -> None:
            self.after = self.calls

        def elapsed_ms(self) -> list[float]:
            return [7.0 * (self.after - self.before)]

    watch = Watch()
    monkeypatch.setattr(planted, "stopwatch", lambda device: watch)

    def work() -> None:
        watch.calls += 1

    assert planted._steady_ms(work, torch.device("cpu")) == 7.0
    assert watch.calls == 3 + 3 + 43  # to compile, to know how many, 300 ms


@pytest.fixture
def timed(make_record):
    """A row of 30 rounds of 2 samples with 0.3 % of noise, `factor` as long as the right one."""

    def make(name: str, factor: float, noise: float = 0.003, rounds: int = 30):
        generator = np.random.default_rng(len(name))
        ms = list(10.0 * factor * (1 + noise * generator.standard_normal(2 * rounds)))
        half = [value / 2 for value in ms]
        times = Times(
            fwd_no_grad_ms=half, fwd_ms=half, bwd_ms=half, fwd_bwd_ms=ms, round=[k // 2 for k in range(2 * rounds)]
        )
        return make_record(name).model_copy(update={"times": times})

    return make


def test_the_slow_one_needs_the_verdict_and_its_size(timed) -> None:
    right = timed("right", 1.0)

    def outcome(row) -> Outcome:
        return finding(SLOWER, [right, row]).outcome

    assert outcome(timed("slower", 1.02)) is Outcome.CAUGHT
    assert outcome(timed("slower", 1.0)) is Outcome.MISSED
    assert outcome(timed("slower", 1.2)) is Outcome.MISSED  # slower, but not by what was planted
    assert outcome(timed("slower", 1.03, noise=0.03)) is Outcome.MISSED  # though its interval is wide
    assert outcome(timed("slower", 1.01, noise=0.03)) is Outcome.UNSURE
    assert outcome(timed("slower", 1.02, rounds=4)) is Outcome.MISSED


def test_the_leak_must_show_and_be_alone(make_record) -> None:
    def row(name: str, leaked: int | None):
        record = make_record(name)
        memory = Memory.model_validate(record.memory.model_dump() | {"leaked_bytes": leaked})
        return record.model_copy(update={"memory": memory})

    assert finding(LEAKY, [row("right", 0), row("leaky", 8 << 20)]).outcome is Outcome.CAUGHT
    for right, leaky in ((0, 0), (0, None), (512, 8 << 20)):
        assert finding(LEAKY, [row("right", right), row("leaky", leaky)]).outcome is Outcome.MISSED


def test_exit_codes() -> None:
    caught, missed, unsure = (Finding(SLOWER, "", "", outcome) for outcome in Outcome)
    assert command.exit_code([caught]) == 0
    assert command.exit_code([caught, unsure]) == 6
    assert command.exit_code([caught, unsure, missed]) == 1


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from harness.cli import app
    from harness.running import runs

    monkeypatch.setattr(runs, "environment", lambda log: {"cuda_available": False})
    done = CliRunner().invoke(app, ["selftest", "--device", "cuda", "--out", str(tmp_path)])
    assert done.exit_code == 5
    done = CliRunner().invoke(app, ["capacity"])
    assert done.exit_code == 5
    done = CliRunner().invoke(app, ["capacity", "--only", "basline"])
    assert done.exit_code == 2
    monkeypatch.setattr(
        runs, "environment", lambda log: {"cuda_available": True, "gpu": {"memory_bytes": 24 << 30, "name": "x"}}
    )
    done = CliRunner().invoke(app, ["capacity", "--card", "80"])
    assert done.exit_code == 5
