"""What the command line says when it is misused, and what it lists."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.running import runs

TINY = """\
name: tiny
description: nothing much
device: {device}
grid: {{tokens: 4, hidden_size: 8, vocab_size: 32, dtype: float32, inputs: gaussian}}
implementations: [lower-bound, baseline]
measurement: {{phases: [agreement]}}
"""


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine as a worker on a CPU would describe it, without starting one."""
    monkeypatch.setattr(runs, "environment", lambda log: {"cuda_available": False, "cpu_cores": 2})


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.format(device="cpu"))
    return path


def invoke(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


def test_a_gpu_suite_without_a_gpu_is_one_sentence_and_exit_5(tmp_path: Path, no_gpu: None) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.format(device="cuda"))
    code, stdout, stderr = invoke("run", path, "--out", tmp_path / "run")
    assert code == 5
    assert stdout == ""
    assert stderr == ("error: suite 'tiny' needs a CUDA GPU and torch sees none here; suites/quick.yaml runs on a CPU")
    assert not (tmp_path / "run").exists()


def test_a_gpu_suite_can_be_planned_without_a_gpu(no_gpu: None, tmp_path: Path) -> None:
    code, stdout, _ = invoke("run", "suites/gemma2.yaml", "--dry-run")
    assert code == 0
    assert stdout.count("zipf-medium") == 4
    assert "on a CUDA GPU" in stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "basline"], "--only basline: suite 'tiny' has no such implementation, did you mean 'baseline'?"),
        (["--skip", "baseline", "--skip", "lower-bound"], "leave no implementation of suite 'tiny'"),
        (["--where", "tokns=4"], "did you mean 'tokens'?"),
        (["--where", "tokens=5"], "--where tokens=5 leaves no case of suite 'tiny'"),
        (["--where", "tokens=many"], "--where tokens: should be a valid integer, not 'many'"),
        (["--where", "tokens"], "must be KEY=VALUE"),
    ],
)
def test_selections_that_select_nothing(suite: Path, no_gpu: None, arguments: list[str], words: str) -> None:
    code, stdout, stderr = invoke("run", suite, *arguments)
    assert code == 2
    assert words in stderr
    assert stdout == ""


def test_where_reads_none_as_no_softcap(suite: Path, no_gpu: None) -> None:
    code, stdout, _ = invoke("run", suite, "--where", "softcap=none|30.0", "--dry-run")
    assert code == 0
    assert "n4-d8-v32" in stdout


def test_a_dry_run_writes_nothing(suite: Path, no_gpu: None, tmp_path: Path) -> None:
    code, stdout, _ = invoke("run", suite, "--out", tmp_path / "run", "--dry-run")
    assert code == 0
    assert "n4-d8-v32-fp32-b0-gaussian" in stdout
    assert "min" in stdout
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_not_overwritten(suite: Path, no_gpu: None, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "records.jsonl").write_text("precious\n")
    code, _, stderr = invoke("run", suite, "--out", tmp_path / "run")
    assert code == 2
    assert "--resume" in stderr
    assert (tmp_path / "run" / "records.jsonl").read_text() == "precious\n"


def test_resume_of_nothing(tmp_path: Path) -> None:
    code, _, stderr = invoke("run", "--resume", tmp_path)
    assert code == 2
    assert "holds no run: plan.json is missing" in stderr


def test_no_suite_at_all() -> None:
    code, _, stderr = invoke("run")
    assert code == 2
    assert "suites/quick.yaml" in stderr


def test_report_of_nothing(tmp_path: Path) -> None:
    code, _, stderr = invoke("report", tmp_path / "none")
    assert code == 2
    assert str(tmp_path / "none") in stderr.replace(" ", "")


def test_validate_lists_mistakes_of_all_files(tmp_path: Path, suite: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: x\n")
    code, stdout, stderr = invoke("validate", suite, bad)
    assert code == 2
    assert "tiny.yaml: ok; cases: 1; implementations: 2" in stdout.replace("\n", " ")
    assert "missing key 'implementations'" in stderr


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{name: torchtune-chunked, options: {chnks: 3}}", "'torchtune-chunked': options: got an unexpected keyword"),
        ("{name: mine, path: 'tests.harness.planted:right', options: {a: 1}}", "'mine': options: got an unexpected"),
        ("{name: mine, path: 'tests.harness.planted:has_options', options: {scale: -1}}", "scale is positive, not -1"),
    ],
)
def test_wrong_options_stop_a_run_before_it_begins(tmp_path: Path, no_gpu: None, row: str, words: str) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.format(device="cpu").replace("baseline]", f"baseline, {row}]"))
    code, _, stderr = invoke("run", path, "--out", tmp_path / "run")
    assert code == 2
    assert words in stderr
    assert not (tmp_path / "run").exists()


def test_list_keeps_on_after_a_bad_row(tmp_path: Path, no_gpu: None) -> None:
    path = tmp_path / "tiny.yaml"
    row = "{name: mine, path: 'tests.harness.nowhere:x'}"
    path.write_text(TINY.format(device="cpu").replace("baseline]", f"{row}, baseline]"))
    code, stdout, stderr = invoke("list", path)
    assert code == 0, stderr
    assert "No module named 'tests.harness.nowhere'" in stdout
    assert "| baseline " in stdout


def test_an_impossible_run_directory_is_named(suite: Path, no_gpu: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, stderr = invoke("run", suite, "--out", tmp_path / "file")
    assert code == 2
    assert "cannot be created: File exists" in stderr


def test_interrupted_before_anything_was_measured(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(log: Path) -> dict[str, object]:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "environment", interrupted)
    code, _, stderr = invoke("run", suite)
    assert code == 130
    assert stderr == "error: interrupted; nothing measured"


def test_list_says_what_is_available_and_why_not(suite: Path) -> None:
    shown = subprocess.run([sys.executable, "-m", "harness", "list"], capture_output=True, text=True, check=True).stdout
    assert "| baseline " in shown
    assert "suites/quick.yaml" in shown
    cells = subprocess.run(
        [sys.executable, "-m", "harness", "list", "suites/gemma2.yaml"], capture_output=True, text=True, check=True
    ).stdout
    assert cells.count("has no label smoothing") == 5 * 4  # torchtune and CCE, also where there is no GPU to run on


# what each package may import; harness runs losses through implementations, and looks at vocabulary orders of kernels
PACKAGES = {"kernels": set(), "implementations": {"kernels"}, "harness": {"implementations", "kernels"}}
# the parts of harness that may import torch; what selftest plants runs in workers
COMPUTING = {"worker", "training", "capture", "calibration", "planted.py"}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    for path in Path(package).rglob("*.py"):
        for imported in _imports(path):
            top = imported.split(".")[0]
            if top in PACKAGES and top != package:
                assert top in PACKAGES[package], f"{path} imports {imported}"


def test_only_the_worker_side_imports_torch() -> None:
    for path in Path("harness").rglob("*.py"):
        if not COMPUTING & set(path.parts):
            assert "torch" not in {i.split(".")[0] for i in _imports(path)}, path


def test_workers_import_nothing_that_only_reading_needs() -> None:
    for path in Path("harness/worker").rglob("*.py"):
        assert not {"pandas", "tabulate", "matplotlib"} & {i.split(".")[0] for i in _imports(path)}, path


def test_files_stay_short() -> None:
    for package in (*PACKAGES, "tests"):
        for path in Path(package).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 350, path


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
    return found
