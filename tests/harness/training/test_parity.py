"""The numbers of the parity table, from lines that were made by hand, and the picture."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.record import Provenance
from harness.training.curve_log import CurveLog, Evaluation, Outcome, Step
from harness.training.curves import read_curves, smoothed
from harness.training.parity import Gap, parity_rows, parity_table
from harness.training.report import write_report
from harness.training.training_run import TrainingPlan, TrainingRun

MIB = 1 << 20
PROVENANCE = Provenance(
    commit="0123456789abcdef", dirty=True, argv=["train"], started="2026-03-04T05:06:07Z", device="cuda",
    device_name="NVIDIA H200", environment={"packages": {"torch": "2.11.0"}},
)  # fmt: skip


def write(log: CurveLog, losses: list[float], norms: list[float], ms: list[float], peak: int | None = MIB) -> None:
    """The first step is cold: slow, and large."""
    for number, (loss, norm, step_ms) in enumerate(zip(losses, norms, ms, strict=True), start=1):
        log.append(
            Step(
                step=number, loss=loss, grad_norm=norm, learning_rate=1e-3, step_ms=step_ms,
                tokens_per_s=64 / (step_ms / 1e3), peak_bytes=peak and (peak if number > 1 else 99 * peak),
                warm=number > 1,
            )
        )  # fmt: skip


@pytest.fixture
def run(toy, tmp_path: Path) -> TrainingRun:
    config = toy(
        loss=["baseline", "torch-compile", "ours-exact", "cce"],
        training={"label_smoothing": [0.0, 0.1], "steps": 4},
    )
    run = TrainingRun(tmp_path / "run")
    run.create(
        TrainingPlan(
            config=config, device="cuda", corpus_digest="abcdef0123456789", corpus_description="10 documents",
            provenance=PROVENANCE,
        )
    )  # fmt: skip
    logs = {curve.id: run.log(curve) for curve in config.curves()}
    write(logs["baseline-b0"], [5.0, 4.0, 3.0, 2.0], [1.0, 1.0, 1.0, 1.0], [900.0, 10.0, 30.0, 20.0])
    write(logs["torch-compile-b0"], [5.0, 4.0, 3.0, 2.25], [1.0, 1.5, 1.0, 1.0], [9000.0, 5.0, 5.0, 8.0], 2 * MIB)
    write(logs["ours-exact-b0"], [5.0, 3.5, 3.25], [1.0, 1.0, 0.875], [700.0, 4.0, 6.0], 3 * MIB)
    write(logs["ours-exact-b0.1"], [6.0], [1.0], [700.0], None)
    for name in ("baseline-b0", "torch-compile-b0"):
        logs[name].conclude(Outcome(status="finished"))
    logs["baseline-b0"].append(Evaluation(step=2, held_out_loss=4.5))
    logs["baseline-b0"].append(Evaluation(step=4, held_out_loss=2.5))
    logs["cce-b0.1"].conclude(Outcome(status="skipped", reason="unsupported: it has no label smoothing"))
    logs["ours-exact-b0"].conclude(Outcome(status="failed", reason="out_of_memory: CUDA out of memory"))
    return run


def test_gaps_medians_and_peaks(run: TrainingRun) -> None:
    rows = {(row.loss, row.label_smoothing): row for row in parity_rows(read_curves(run, run.plan().config))}
    assert list(rows) == [("baseline", 0.0), ("torch-compile", 0.0), ("ours-exact", 0.0), ("ours-exact", 0.1)]
    ours = rows["ours-exact", 0.0]
    assert ours.steps == 3
    assert ours.last_loss == 3.25
    assert ours.loss_gap == Gap(0.5, 2, pytest.approx((0.25 + 0.0625) ** 0.5 / 3**0.5))  # of the steps that both have
    assert ours.grad_norm_gap == Gap(0.125, 3, pytest.approx(0.125 / 3**0.5))
    assert ours.loss_yardstick == Gap(0.25, 4, 0.125)
    assert ours.grad_norm_yardstick == Gap(0.5, 2, 0.25)
    assert (ours.step_ms, ours.peak_bytes) == (5.0, 3 * MIB)  # without the first step
    baseline = rows["baseline", 0.0]
    assert (baseline.loss_gap, baseline.grad_norm_gap) == (None, None)
    assert (baseline.step_ms, baseline.tokens_per_s, baseline.held_out_loss) == (20.0, pytest.approx(3200.0), 2.5)
    alone = rows["ours-exact", 0.1]
    assert (alone.loss_gap, alone.loss_yardstick, alone.step_ms, alone.peak_bytes) == (None, None, None, None)


def test_the_table_has_these_numbers(run: TrainingRun) -> None:
    table = parity_table(parity_rows(read_curves(run, run.plan().config)))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert rows[0][5:10] == ["loss gap", "yardstick", "grad norm gap", "yardstick", "step ms"]
    assert rows[2] == [
        "baseline",
        "0",
        "4",
        "2.0000",
        "2.5000",
        "—",
        "2.5e-01 @4, 1.2e-01",
        "—",
        "5.0e-01 @2, 2.5e-01",
        "20.00",
        "3200",
        "1",
    ]
    assert rows[4][5:] == [
        "5.0e-01 @2, 3.2e-01",
        "2.5e-01 @4, 1.2e-01",
        "1.2e-01 @3, 7.2e-02",
        "5.0e-01 @2, 2.5e-01",
        "5.00",
        "13333",
        "3",
    ]
    assert rows[5][4:] == ["—"] * 8


def test_the_report_says_what_is_missing_and_draws_the_rest(run: TrainingRun) -> None:
    text = write_report(run)
    assert (run.path / "report.md").read_text() == text
    words = " ".join(text.split())
    assert "NVIDIA H200, torch 2.11.0, 0123456789ab and changes" in words
    assert "without the first steps of each process (at most 1 of a curve here)" in words
    assert "No yardstick at β = 0.1" in words
    assert "`cce`, β = 0.1: skipped, unsupported: it has no label smoothing" in words
    assert "`ours-exact`, β = 0: failed, out_of_memory" in words
    assert "`ours-exact`, β = 0.1: at step 1" in words
    assert "`baseline`, β = 0.1: not begun" in words
    assert "](curves.svg)" in text
    drawn = (run.path / "curves.svg").read_bytes()
    assert all(name in drawn for name in (b"baseline", b"torch-compile", b"ours-exact"))
    assert b">cce<" not in drawn  # it has no line
    assert (run.path / "curves.png").read_bytes().startswith(b"\x89PNG")
    write_report(run)
    assert (run.path / "curves.svg").read_bytes() == drawn


def test_without_a_baseline_no_distance_is_drawn(run: TrainingRun) -> None:
    shutil.rmtree(run.path / "curves" / "baseline-b0")
    write_report(run)
    drawn = (run.path / "curves.svg").read_bytes()
    assert b"gradient norm" in drawn and b"distance of the loss" not in drawn


def test_a_torn_line_is_not_there(run: TrainingRun) -> None:
    log = run.log(run.plan().config.curves()[0])
    with (log.path / "steps.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    assert [s.step for s in log.steps()] == [1, 2, 3, 4]
    log.cut_back(2)
    assert [s.step for s in log.steps()] == [1, 2]
    assert [e.step for e in log.evaluations()] == [2]


def test_smoothing_is_a_trailing_mean() -> None:
    import numpy as np

    assert smoothed(np.array([1.0, 3.0, 5.0, 7.0]), 2).tolist() == [1.0, 2.0, 4.0, 6.0]
    assert smoothed(np.array([1.0, 3.0]), 1).tolist() == [1.0, 3.0]


def test_only_four_files_import_torch() -> None:
    importing = set()
    for path in Path("harness/training").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
        if "torch" in {name.split(".")[0] for name in names}:
            importing.add(path.stem)
    assert importing == {"model", "trainer", "checkpoint", "execution"}


def test_reading_imports_no_torch() -> None:
    readers = ("corpus", "tokenizer", "batches", "curve_log", "curves", "parity", "report", "merging")
    modules = ("config", *readers, "command")
    program = (
        f"import sys; from harness.training import {', '.join(modules)}; "
        "print([m for m in ('torch', 'triton', 'datasets', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
