"""`gate` and `compare` as commands: real processes of two trees on a CPU, and what they say when misused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from harness.analysis.frame import read_records
from harness.cli import app
from tests.harness.running import harness

pytestmark = pytest.mark.takes_s(60)
SUITE = """\
name: toy
description: one row, of whichever tree
device: cpu
grid: {{tokens: 32, hidden_size: 16, vocab_size: 200, dtype: float32, inputs: gaussian}}
implementations:
  - {{name: toy, path: "toy_loss:loss"}}
reference: toy
measurement: {{phases: [{phases}], minimum_rounds: 10, samples_per_turn: 2, case_budget_s: 5}}
"""
RIGHT = """\
from implementations.baseline import eager_loss as loss
"""
SCALED = """\
from implementations.baseline import eager_loss


def loss(*arguments, **settings):
    found = eager_loss(*arguments, **settings)
    return 1.02 * found - 0.02 * found.detach()
"""
SLOW = """\
import time

from implementations.baseline import eager_loss


def loss(*arguments, **settings):
    time.sleep(0.05)
    return eager_loss(*arguments, **settings)
"""
HUNGRY = """\
import torch

from implementations.baseline import eager_loss


def loss(*arguments, **settings):
    torch.empty(1 << 20)
    return eager_loss(*arguments, **settings)
"""


def laid_out(tmp_path: Path, head: str, phases: str = "agreement") -> list[str]:
    """Arguments of a gate between a tree with RIGHT and one with `head`."""
    for name, content in (("base", RIGHT), ("head", head)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "toy_loss.py").write_text(content)
    (tmp_path / "toy.yaml").write_text(SUITE.format(phases=phases))
    trees = [f"base={tmp_path / 'base'}", f"head={tmp_path / 'head'}"]
    return ["gate", "--pair", *trees, str(tmp_path / "toy.yaml"), "--out", str(tmp_path / "out")]


def gate(arguments: list[str], **settings: Any) -> tuple[int, str, str]:
    done = harness(*arguments, **settings)
    return done.returncode, done.stdout, done.stderr


def test_a_gradient_scale_of_2_percent_exits_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("what another step wrote\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    code, out, err = gate(laid_out(tmp_path, SCALED))
    assert code == 3, err
    assert "## Gate of toy: AN IMPLEMENTATION DISAGREES (exit 3)" in out
    assert "`toy` disagrees, base is ok: grad_input: error 0.02 is " in out
    assert "ok to **disagrees**" in out
    assert summary.read_text() == "what another step wrote\n" + out
    assert (tmp_path / "out" / "gate.md").read_text() == out
    records = read_records(tmp_path / "out")
    assert [record.implementation for record in records] == ["toy@base", "toy@head"]
    assert len({record.source_sha256 for record in records}) == 2
    again = harness("compare", tmp_path / "out")
    assert again.returncode == 3 and "`toy` disagrees, base is ok" in again.stdout


def test_a_summary_that_cannot_be_written_changes_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "nowhere" / "summary.md"))
    code, out, err = gate(laid_out(tmp_path, RIGHT))
    assert code == 0 and "no regression (exit 0)" in out
    assert (tmp_path / "out" / "gate.md").read_text() == out
    assert "warning: GITHUB_STEP_SUMMARY=" in err and "No such file or directory" in err and "Traceback" not in err


def test_a_base_that_cannot_run_is_not_an_equal(tmp_path: Path) -> None:
    arguments = laid_out(tmp_path, RIGHT)
    (tmp_path / "base" / "toy_loss.py").write_text("raise ImportError('an older contract')\n")
    code, out, err = gate(arguments)
    assert code == 6, err
    assert "no row was measured in both base and head: nothing was compared" in out
    assert "- `toy` of base: " in out and "an older contract" in out


def test_more_memory_cannot_be_seen_on_a_cpu_and_the_table_says_so(tmp_path: Path) -> None:
    code, out, err = gate(laid_out(tmp_path, HUNGRY, "memory, agreement"))
    assert code == 0, err
    assert "## Gate of toy: no regression (exit 0)" in out
    assert "No memory: it is measured on a GPU only." in out


def test_a_head_that_takes_ten_times_as_long(tmp_path: Path) -> None:
    """50 ms of sleep beside less than 5 ms of work: no noise of this machine turns that round."""
    arguments = laid_out(tmp_path, SLOW, "time, agreement")
    policy = tmp_path / "policy.yaml"
    policy.write_text("name: cpu too\ntime_margin: 0.5\ntime_devices: [cuda, cpu]\n")
    code, out, err = gate([*arguments, "--policy", str(policy)])
    assert code in (1, 5), err  # 5 if two workers of the same code were as far apart as 50 %
    if code == 1:
        assert "`toy` is SLOWER by " in out and "with new processes" in out
        assert (tmp_path / "out" / "again" / "records.jsonl").exists()
    shown = harness("compare", tmp_path / "out")  # by the default policy a CPU's time fails nothing
    assert shown.returncode == 0 and "(SLOWER)" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["gate", "suites/quick.yaml"], 2, "say what to hold it to"),
        (["gate", "--pair", "base=.", "had=.", "suites/quick.yaml"], 2, "--pair must be base=REF head=REF"),
        (["gate", "--pair", "base=", "head=.", "suites/quick.yaml"], 2, "--pair must be base=REF head=REF"),
        (
            ["gate", "--pair", "base=no-such-commit", "head=.", "suites/quick.yaml"],
            2,
            "neither a directory nor a commit",
        ),
        (["gate", "--pair", "base=.", "head=.", "suites/gemma2.yaml"], 5, "needs a CUDA GPU"),
        (["gate", "--pair", "base=.", "head=.", "suites/quick.yaml", "--only", "our"], 2, "no such implementation"),
        (["gate", "--pair", "base=.", "head=.", "suites/quick.yaml", "--strict"], 2, "go with --baseline"),
        (
            ["gate", "--pair", "base=docs", "head=.", "suites/quick.yaml"],
            5,
            "base=docs holds nothing of what is measured",
        ),
        (["gate", "nowhere", "--baseline", "nowhere.yaml"], 2, "nowhere"),
        (
            ["gate", "r", "--baseline", "b.yaml", "--only", "ours", "--budget", "9"],
            2,
            "--only, --budget: goes with --pair",
        ),
        (["gate", "r", "--baseline", "b.yaml", "--share-environment"], 2, "--share-environment: goes with --pair"),
        (["gate", "r", "--baseline", "b.yaml", "--update-baseline", "--strict"], 2, "without --strict and --policy"),
        (["compare", "nowhere"], 2, "nowhere does not exist"),
        (["compare", "reports/gemma2-h200"], 2, "give a second run, or two of its rows (--rows BASE=HEAD); without"),
        (["compare", "reports/gemma2-h200", "--rows", "a=b"], 2, "reports/gemma2-h200 has no row 'a' (it has: "),
        (
            ["compare", "reports/gemma2-h200", "--rows", "ours=baseline", "--rows", "ours=baselin"],
            2,
            "has no row 'baselin', did you mean 'baseline'?",
        ),
        (
            ["compare", "reports/gemma2-h200", "reports/models-h200", "--rows", "ours=our"],
            2,
            "reports/models-h200 has no row 'our', did you mean 'ours'?",
        ),
        (["compare", "reports/gemma2-h200", "--rows", "ours"], 2, "must be BASE=HEAD"),
    ],
)
def test_misuse_is_one_sentence(arguments: list[str], code: int, words: str, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")] if "--pair" in arguments else []
    done = CliRunner().invoke(app, [*arguments, *out])
    assert (done.exit_code, done.stdout) == (code, ""), done.exception
    assert words in " ".join(done.stderr.split()), done.stderr
    assert isinstance(done.exception, SystemExit)  # else it is a traceback for whoever is no CliRunner


def test_mistakes_in_a_policy_stop_a_gate_before_it_begins(tmp_path: Path) -> None:
    arguments = laid_out(tmp_path, RIGHT)
    policy = tmp_path / "policy.yaml"
    policy.write_text("name: x\nrules:\n  - {implementation: ty, time_margin: 0.1, reason: r}\n")
    code, out, err = gate([*arguments, "--policy", str(policy)])
    assert (code, out) == (2, "")
    assert f"{policy}:3: rules.0.implementation: 'ty' is none of the rows, did you mean 'toy'?" in err
    assert not (tmp_path / "out").exists()


def test_a_policy_shows_what_each_row_is_held_to(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "name: x\nrules:\n  - {implementation: ours, where: {softcap: 30.0}, time_margin: 0.1, reason: r}\n"
    )
    assert harness("policy", policy).stdout.replace("\n", "") == f"{policy}: ok; rules: 1"
    lines = [line.split("|")[1:5] for line in harness("policy", policy, "suites/gemma2.yaml").stdout.splitlines()]
    shown = [[cell.strip() for cell in line][:3] for line in lines]
    assert ["ours", "2", "0.1"] in shown and ["ours", "5", "0.015"] in shown and ["baseline", "7", "0.015"] in shown
    policy.write_text("name: x\ntime_margin: none\n")
    wrong = harness("policy", policy)
    assert wrong.returncode == 2 and f"{policy}:2: time_margin: should be a valid number" in wrong.stderr


def test_real_records_can_be_compared() -> None:
    done = harness("compare", "reports/gemma2-h200", "--rows", "baseline=ours-exact")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("FASTER") >= 5
    other = harness("compare", "reports/gemma2-h200", "reports/numerics-h200")
    assert other.returncode == 2 and "suite: gemma2 against numerics" in other.stderr


def test_a_baseline_is_written_and_held_to(tmp_path: Path) -> None:
    file = tmp_path / "baselines" / "h200.yaml"
    written = harness("gate", "reports/gemma2-h200", "--baseline", file, "--update-baseline")
    assert written.returncode == 0, written.stderr
    first = file.read_text()
    harness("gate", "reports/gemma2-h200", "--baseline", file, "--update-baseline")
    assert file.read_text() == first
    held = harness("gate", "reports/gemma2-h200", "--baseline", file)
    assert held.returncode in (0, 6) and "SLOWER by" not in held.stdout  # 6: its intervals are wide
    assert "- base: stored ratios, " in held.stdout
