"""The workflows and the scripts that CI runs: well-formed, careful, and in step with the command line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from harness.cli import app

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
DOCUMENTED = re.compile(r"```yaml\n# \.gitlab-ci\.yml\n(.*?)```", re.DOTALL)


def lint(schema: str, *files: Path) -> subprocess.CompletedProcess[str]:
    """By a schema that comes with check-jsonschema: no network."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def jobs(workflow: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(workflow.read_text())["jobs"]
    return found


def steps(workflow: Path) -> list[dict[str, Any]]:
    return [step for job in jobs(workflow).values() for step in job["steps"]]


def test_workflows_are_githubs() -> None:
    done = lint("github-workflows", *WORKFLOWS)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("change", [("runs-on:", "runs_on:"), ("contents: read", "contents: reed"), ("uses:", "use:")])
def test_what_is_not_githubs_would_be_noticed(tmp_path: Path, change: tuple[str, str]) -> None:
    text = WORKFLOWS[0].read_text()
    (tmp_path / "wrong.yml").write_text(text.replace(*change))
    assert change[0] in text
    assert lint("github-workflows", tmp_path / "wrong.yml").returncode == 1


def test_the_documented_gitlab_job_is_gitlabs(tmp_path: Path) -> None:
    (job,) = DOCUMENTED.findall((ROOT / "docs/ci.md").read_text())
    (tmp_path / ".gitlab-ci.yml").write_text(job)
    done = lint("gitlab-ci", tmp_path / ".gitlab-ci.yml")
    assert done.returncode == 0, done.stdout
    assert ".ci/gpu" in job


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_may_do_no_more_than_they_must(workflow: Path) -> None:
    assert yaml.safe_load(workflow.read_text())["permissions"] == {}
    for job in jobs(workflow).values():
        assert job["permissions"] == {"contents": "read"}
        assert job["timeout-minutes"] <= 90
    for step in steps(workflow):
        assert "${{" not in step.get("run", ""), "an expression in a shell's text is an injection: hand it over by env"
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
    for line in workflow.read_text().splitlines():
        if "uses:" in line:
            assert re.fullmatch(r"\s*(- )?uses: [\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


def test_the_gpu_is_for_one_at_a_time_and_not_for_forks() -> None:
    (job,) = jobs(ROOT / ".github/workflows/gpu.yml").values()
    assert job["runs-on"][0] == "self-hosted"
    assert job["concurrency"] == {"group": "gpu", "cancel-in-progress": False, "queue": "max"}
    assert "github.event.pull_request.head.repo.full_name == github.repository" in job["if"]


def test_workflows_and_scripts_do_the_same() -> None:
    checked = [step["run"] for step in steps(ROOT / ".github/workflows/check.yml") if "run" in step]
    assert checked == re.findall(r"^make \w+$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    (measured,) = (step["run"] for step in steps(ROOT / ".github/workflows/gpu.yml") if "run" in step)
    program, *_, directory = measured.split()
    uploaded = [
        step["with"]["path"] for step in steps(ROOT / ".github/workflows/gpu.yml") if "upload" in step.get("uses", "")
    ]
    assert os.access(ROOT / program, os.X_OK)
    assert uploaded == [directory]


@pytest.mark.parametrize("command", ["doctor", "gate"])
def test_the_script_speaks_the_command_line(command: str) -> None:
    (called,) = re.findall(rf"-m harness ({command}\b.*)$", (ROOT / ".ci/gpu").read_text(), re.MULTILINE)
    known = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    options = {option for parameter in known.params for option in parameter.opts}
    assert set(re.findall(r"--[\w-]+", called)) <= options


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with the script, and stand-ins for what it calls that write down how they were called."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/gpu", tmp_path / ".ci/gpu")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    stand_in = tmp_path / ".venv/bin/python"
    stand_in.write_text(
        '#!/bin/sh\necho "begin $*" >>calls\n[ "$3" = doctor ] && { echo "it is fit"; exit "${DOCTOR:-0}"; }\n'
        'sleep "${GATE_S:-0}"\necho "end $*" >>calls\nexit "${GATE:-0}"\n'
    )
    stand_in.chmod(0o755)
    (tmp_path / "Makefile").write_text("install:\n\t@echo make install >>calls\n")
    return tmp_path


def start(tree: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "TMPDIR": str(tree), "GITHUB_STEP_SUMMARY": str(tree / "summary.md"), **variables}
    command = [str(tree / ".ci/gpu"), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("code", [0, 1, 3, 4, 5, 6])
def test_the_script_ends_as_the_gate_does(tree: Path, code: int) -> None:
    process = start(tree, "main", "suites/models.yaml", GATE=str(code))
    stdout, stderr = process.communicate()
    assert process.returncode == code, stderr
    called = "-m harness gate --pair base=main head=. suites/models.yaml --out runs/gate/run"
    assert (tree / "calls").read_text().splitlines() == [
        "make install", "begin -m harness doctor", f"begin {called}", f"end {called}",
    ]  # fmt: skip
    assert "it is fit" in stdout
    assert (tree / "summary.md").read_text() == "```\nit is fit\n```\n"
    assert (tree / "runs/gate/doctor.txt").read_text() == "it is fit\n"


def test_an_unfit_machine_measures_nothing_and_says_why(tree: Path) -> None:
    process = start(tree, "main", DOCTOR="5")
    process.communicate()
    assert process.returncode == 5
    assert "gate" not in (tree / "calls").read_text()
    assert "it is fit" in (tree / "summary.md").read_text()


def test_a_gate_that_is_there_is_not_found_out_about_after_the_wait(tree: Path) -> None:
    (tree / "runs/gate/run").mkdir(parents=True)
    (tree / "runs/gate/run/records.jsonl").touch()
    process = start(tree, "main")
    assert "runs/gate/run holds a gate already" in process.communicate()[1]
    assert process.returncode == 2
    assert not (tree / "calls").exists()


def test_without_a_base_the_script_says_what_it_needs(tree: Path) -> None:
    process = start(tree)
    assert "usage: .ci/gpu BASE [SUITE [DIR]]" in process.communicate()[1]
    assert process.returncode == 2
    assert not (tree / "calls").exists()


def test_two_scripts_take_turns(tree: Path) -> None:
    """The second one's doctor waits for the first one's gate, or it would find the GPU busy."""
    both = [start(tree, base, GATE_S="0.5") for base in ("one", "two")]
    assert [process.wait() for process in both] == [0, 0]
    for process in both:
        process.communicate()
    calls = [line.split()[0] for line in (tree / "calls").read_text().splitlines() if line != "make install"]
    assert calls == ["begin", "begin", "end"] * 2
