"""Where workers of base and head import from, and how a commit becomes a tree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.gate import checkout
from harness.gate.checkout import trees
from harness.gate.tree import Tree, UnusableTree, python_of, tree_at
from harness.provenance import ROOT
from harness.running.process import Worker, WorkerFailure
from harness.selection import InvalidSelection


def git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture
def own_tree(tmp_path: Path) -> Path:
    """This project, once more: adapters and kernels that say that they are the copy's."""
    root = tmp_path / "copy"
    (root / "implementations").mkdir(parents=True)
    (root / "implementations" / "__init__.py").write_text("")
    (root / "implementations" / "contract.py").write_text("raise ImportError('an old contract')\n")
    (root / "implementations" / "registry.py").write_text("REGISTRY = {'ours': 'implementations.ours:old_name'}\n")
    (root / "implementations" / "ours.py").write_text("MINE = 'copy'\n")
    (root / "kernels").mkdir()
    (root / "kernels" / "__init__.py").write_text("MINE = 'copy'\n")
    (root / "harness").mkdir()
    (root / "harness" / "__init__.py").write_text("raise ImportError('an old stopwatch')\n")
    return root


def imported(tree: Tree, code: str) -> list[str]:
    done = subprocess.run(
        [tree.python, "-P", "-c", code],
        env=tree.origin.environment(),
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_a_trees_kernels_and_adapters_are_measured_by_the_running_harness(own_tree: Path, tmp_path: Path) -> None:
    tree = tree_at("base", "v1", own_tree, sys.executable, tmp_path / "overlays")
    code = """
import os, harness, kernels, implementations.ours, implementations.contract
from implementations.registry import REGISTRY
print(kernels.MINE, implementations.ours.MINE)
print(os.path.realpath(harness.__file__), os.path.realpath(implementations.contract.__file__))
print(len(REGISTRY))
"""
    mine, measuring, names = imported(tree, code)
    assert mine == "copy copy"
    assert measuring == f"{ROOT}/harness/__init__.py {ROOT}/implementations/contract.py"
    assert int(names) > 10  # the running registry, which the harness asks
    assert tree.registry() == {"ours": "implementations.ours:old_name"}  # the names are the tree's


def test_a_tree_of_another_project_gets_the_running_packages(tmp_path: Path) -> None:
    (tmp_path / "theirs" / "src" / "theirs").mkdir(parents=True)
    (tmp_path / "theirs" / "src" / "theirs" / "__init__.py").write_text("MINE = 'theirs'\n")
    tree = tree_at("head", "../theirs", tmp_path / "theirs", sys.executable, tmp_path / "overlays")
    code = (
        "import os, theirs, kernels, implementations.ours as o\nprint(theirs.MINE)\nprint(os.path.realpath(o.__file__))"
    )
    assert imported(tree, code) == ["theirs", f"{ROOT}/implementations/ours.py"]
    assert "ours" in tree.registry()


def test_a_search_path_that_names_the_trees_themselves_is_not_passed_on(
    own_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{own_tree}:/elsewhere")
    tree = tree_at("base", "v1", own_tree, sys.executable, tmp_path / "overlays")
    assert tree.origin.search_path == (str(tmp_path / "overlays" / "base"), "/elsewhere")


def test_a_report_names_what_was_asked_for_and_not_where_it_lay(own_tree: Path, tmp_path: Path) -> None:
    (own_tree / "REVISION").write_text("0123456789abcdef\n")
    own = tree_at("base", "v1", own_tree, sys.executable, tmp_path / "overlays")
    other = tree_at("head", "../theirs", own_tree, "/elsewhere/.venv/bin/python", tmp_path / "overlays")
    assert own.described == "v1 (0123456789ab)"
    assert other.described == "../theirs (0123456789ab), in an environment of its own"


def test_a_worker_of_a_tree_answers(own_tree: Path, tmp_path: Path) -> None:
    for file in ("contract.py", "registry.py", "baseline.py"):  # an adapter of this project, in the copy
        (own_tree / "implementations" / file).write_text((ROOT / "implementations" / file).read_text())
    tree = tree_at("base", "v1", own_tree, sys.executable, tmp_path / "overlays")
    worker = Worker(tmp_path / "log", tree.origin)
    try:
        asked = {"path": "implementations.baseline:baseline", "options": {}, "cases": [], "device": "cpu"}
        assert worker.request("supported", 120, **asked) == {"reasons": []}
        with pytest.raises(WorkerFailure, match="has no attribute 'auto'"):
            worker.request("supported", 120, **(asked | {"path": "implementations.ours:auto"}))
    finally:
        worker.kill()


def test_a_tree_that_holds_nothing_of_what_is_measured_is_known(own_tree: Path, tmp_path: Path) -> None:
    """What it lacks is taken from the running tree: all of it, and a gate would compare that with itself."""
    (tmp_path / "elsewhere" / "src" / "theirs").mkdir(parents=True)
    (tmp_path / "elsewhere" / "toy_loss.py").write_text("")
    found = [
        tree_at("base", "x", root, python, tmp_path / f"overlays{number}").holds([package])
        for number, (root, python, package) in enumerate(
            [
                (own_tree, sys.executable, "implementations"),
                (tmp_path / "elsewhere", sys.executable, "implementations"),
                (tmp_path / "elsewhere", sys.executable, "theirs"),
                (tmp_path / "elsewhere", sys.executable, "toy_loss"),
                (tmp_path / "elsewhere", "/own/.venv/bin/python", "installed"),
                (ROOT / "docs", sys.executable, "implementations"),
                (ROOT, sys.executable, "implementations"),
            ]
        )
    ]
    assert found == [True, False, True, True, True, False, True]


def test_a_build_that_never_ends_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkout, "_BUILD_TIMEOUT_S", 0.1)
    with pytest.raises(UnusableTree, match=r"base: sleep 60 \.\.\. took more than 0\.00166667 minutes"):
        checkout._build("base", ["sleep", "60"])


def test_a_registry_that_cannot_be_read_is_one_sentence(own_tree: Path, tmp_path: Path) -> None:
    (own_tree / "implementations" / "registry.py").write_text("import nothing_of_the_kind\n")
    tree = tree_at("base", "v1", own_tree, sys.executable, tmp_path / "overlays")
    with pytest.raises(UnusableTree, match=r"base: the registry of .* No module named 'nothing_of_the_kind'"):
        tree.registry()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init", "--quiet", "--initial-branch=main")
    for content in ("first", "second"):
        (root / "toy_loss.py").write_text(f"MINE = '{content}'\n")
        git(root, "add", ".")
        git(root, "commit", "--quiet", "-m", content)
    monkeypatch.chdir(root)
    return root


def test_a_commit_is_checked_out_beside_the_repository_and_removed(repository: Path, tmp_path: Path) -> None:
    (repository / "toy_loss.py").write_text("MINE = 'uncommitted'\n")
    with trees("HEAD~1", ".", tmp_path / "scratch", share_environment=True) as (base, head):
        assert imported(base, "import toy_loss; print(toy_loss.MINE)") == ["first"]
        assert imported(head, "import toy_loss; print(toy_loss.MINE)") == ["uncommitted"]
        assert base.commit == git(repository, "rev-parse", "HEAD~1") and base.dirty is False
        assert head.commit == git(repository, "rev-parse", "HEAD") and head.dirty is True
        assert len(git(repository, "worktree", "list").splitlines()) == 2
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    assert (repository / "toy_loss.py").read_text() == "MINE = 'uncommitted'\n"


def test_kept_trees_are_found_again(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "kept"
    for scratch in ("one", "two"):
        with trees("main~1", "main", tmp_path / scratch, share_environment=True, kept=kept) as (base, head):
            assert base.root.parent == head.root.parent == kept
    assert len(list(kept.iterdir())) == 2


def test_a_commit_gets_an_environment_of_its_own(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "pyproject.toml").write_text("[project]\nname = 'toy'\nversion = '1'\n")
    (repository / "constraints.txt").write_text("torch==2.13.0\n")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", "third")
    commands: list[list[str]] = []
    monkeypatch.setattr(checkout, "_build", lambda label, command: (commands.append(command), made(command)))

    def made(command: list[str]) -> None:
        if "venv" in command:
            Path(command[-1]).mkdir()

    kept = tmp_path / "kept"
    for _ in range(2):
        with trees("HEAD", ".", tmp_path / f"scratch{_}", kept=kept) as (base, head):
            assert base.python == str(base.root / ".venv" / "bin" / "python")
            assert head.python == sys.executable  # a directory shares the running one, unless it has its own
    assert [command[:3] for command in commands] == [
        [sys.executable, "-m", "venv"],
        [base.python, "-m", "pip"],  # once: the second time it was there
    ]
    assert commands[1][-4:] == ["--constraint", str(base.root / "constraints.txt"), "--editable", str(base.root)]


def test_a_directory_with_an_environment_uses_it(tmp_path: Path) -> None:
    assert python_of(tmp_path) == python_of(ROOT) == sys.executable
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    assert python_of(tmp_path) == str(tmp_path / ".venv" / "bin" / "python")


def test_what_is_neither_a_directory_nor_a_commit(repository: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(InvalidSelection, match="base=no-such is neither a directory nor a commit"),
        trees("no-such", ".", tmp_path / "scratch"),
    ):
        pass


def test_a_commit_without_metadata_cannot_be_installed(repository: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(UnusableTree, match=r"no pyproject\.toml to install; --share-environment"),
        trees("HEAD", ".", tmp_path / "scratch"),
    ):
        pass
    assert len(git(repository, "worktree", "list").splitlines()) == 1
