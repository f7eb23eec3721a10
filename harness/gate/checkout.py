"""From what the command line names, a directory or a git REF, to a tree that can be measured."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.gate.tree import Tree, UnusableTree, python_of, tree_at
from harness.progress import console
from harness.selection import InvalidSelection

_BUILD_TIMEOUT_S = 3600.0  # torch is large


@contextmanager
def trees(
    base: str, head: str, scratch: Path, share_environment: bool = False, kept: Path | None = None
) -> Iterator[tuple[Tree, Tree]]:
    """Base and head, each a directory or a git REF of the repository in the current directory.

    A REF is checked out into a git worktree with a virtual environment of its own, which are removed in the end; or
    stay in `kept`, named by commit, and are found again there. With `share_environment` it gets the running one.
    Raises InvalidSelection for what is neither, UnusableTree for what cannot be built.
    """
    added: list[Path] = []
    try:
        found = []
        for label, given in (("base", base), ("head", head)):
            if Path(given).is_dir():
                root = Path(given)
                python = sys.executable if share_environment else python_of(root)
            else:
                root = _worktree(label, given, kept or scratch, added)
                python = sys.executable if share_environment else _environment(label, root)
            found.append(tree_at(label, given, root, python, scratch / "overlays"))
        yield found[0], found[1]
    finally:
        for root in added if kept is None else []:
            _git("worktree", "remove", "--force", str(root))


def _worktree(label: str, ref: str, folder: Path, added: list[Path]) -> Path:
    resolved = _git("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
    if resolved.returncode:
        raise InvalidSelection(
            f"{label}={ref} is neither a directory nor a commit that git knows in {Path.cwd()}; in a shallow clone "
            f"fetch it first (git fetch --depth 1 origin {ref}), without git give the directory of an exported tree"
        )
    commit = resolved.stdout.strip()
    root = (folder / f"tree-{commit[:12]}").absolute()
    if root.is_dir():
        return root
    folder.mkdir(parents=True, exist_ok=True)
    made = _git("worktree", "add", "--detach", str(root), commit)
    if made.returncode:
        raise UnusableTree(f"{label}={ref}: git worktree add: {made.stderr.strip().splitlines()[-1]}")
    added.append(root)
    return root


def _environment(label: str, root: Path) -> str:
    """Installs the tree as its own metadata asks, with its own pins, and returns the interpreter."""
    folder, python = root / ".venv", root / ".venv" / "bin" / "python"
    finished = folder / "complete"
    if not finished.exists():
        if not (root / "pyproject.toml").is_file() and not (root / "setup.py").is_file():
            raise UnusableTree(
                f"{label}: {root} has no pyproject.toml to install; --share-environment measures it in the running one"
            )
        shutil.rmtree(folder, ignore_errors=True)
        console.print(f"{label}: installing {root} into an environment of its own", soft_wrap=True)
        pins = root / "constraints.txt"
        constraint = ["--constraint", str(pins)] if pins.is_file() else []
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *constraint]
        _build(label, [sys.executable, "-m", "venv", str(folder)])
        _build(label, [*pip, "--editable", str(root)])
        finished.touch()
    return str(python)


def _build(label: str, command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_BUILD_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        words = f"{label}: {' '.join(command[:4])} ... took more than {_BUILD_TIMEOUT_S / 60:g} minutes"
        raise UnusableTree(words) from error
    if done.returncode:
        words = " | ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise UnusableTree(
            f"{label}: {' '.join(command[:4])} ... failed: {words}; without a network give a directory, or "
            "--share-environment"
        )


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise UnusableTree("git is not installed: give directories, not commits") from error
