"""Trees: where base and head come from, and how workers are started from one.

What is measured is a tree's own: its kernels, its adapters, its modules. What measures is the running harness with its
contract, for both: an old base must not be timed by an old stopwatch. So workers import from an overlay, a directory
of links to the tree, with the running `harness`, `implementations/contract.py` and `implementations/registry.py` in it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from harness.provenance import PACKAGES, ROOT, revision
from harness.running.process import Origin

MEASURING = "harness"
_CONTRACT = ("contract.py", "registry.py")
_ADAPTERS = "implementations"
_NAMES = "import json, implementations.registry as r; print(json.dumps(r.REGISTRY))"


class UnusableTree(Exception):
    """A base or head that cannot be measured; one clear sentence."""


@dataclass(frozen=True)
class Tree:
    """A directory of sources with the interpreter that has its libraries."""

    label: str  # "base" or "head"
    ref: str  # what was asked for: a commit or a directory
    root: Path
    python: str
    commit: str | None
    dirty: bool | None
    overlay: Path

    @property
    def origin(self) -> Origin:
        """How its workers are started: modules from the overlay, or from its `src`, before any installed ones."""
        found = [self.overlay, *([self.overlay / "src"] if (self.overlay / "src").is_dir() else [])]
        inherited = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
        foreign = [entry for entry in inherited if Path(entry).resolve() not in (ROOT, self.root)]
        return Origin(self.python, (*map(str, found), *foreign))

    @property
    def described(self) -> str:
        """For the head of a report, which others read on other machines: no directories but those that were given."""
        commit = "unknown commit" if self.commit is None else self.commit[:12] + (" and changes" if self.dirty else "")
        return f"{self.ref} ({commit})" + ("" if self.python == sys.executable else ", in an environment of its own")

    def holds(self, packages: Iterable[str]) -> bool:
        """Whether any of the packages is the tree's own.

        Where none is, the running one's would be measured in its name, and be equal to itself. An environment of its
        own is taken at its word: it has what was installed into it.
        """
        if self.python != sys.executable:
            return True
        folders = (self.root, self.root / "src")
        for package in packages:
            if any((folder / package).is_dir() or (folder / f"{package}.py").is_file() for folder in folders):
                return True
            found = find_spec(package)  # an editable install may lie anywhere in the tree
            places = [] if found is None else [found.origin or "", *(found.submodule_search_locations or [])]
            if any(Path(place).resolve().is_relative_to(self.root) for place in places if place):
                return True
        return False

    def registry(self) -> dict[str, str]:
        """Names and paths of its implementations, as its own registry has them; of the running harness if it has none.

        Raises UnusableTree if that cannot be imported.
        """
        root = self.root if (self.root / _ADAPTERS / "registry.py").is_file() else ROOT
        done = subprocess.run(
            [self.python, "-P", "-c", _NAMES],
            env={**os.environ, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            words = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise UnusableTree(f"{self.label}: the registry of {root} cannot be read by {self.python}: {words}")
        names: dict[str, str] = json.loads(done.stdout)
        return names


def tree_at(label: str, ref: str, root: Path, python: str, scratch: Path) -> Tree:
    """The tree at `root`, where `ref` has been found, with an overlay in `scratch`."""
    root = root.resolve()
    commit, dirty = revision(root)
    return Tree(label, ref, root, python, commit, dirty, overlay_of(root, scratch / label))


def python_of(root: Path) -> str:
    """The interpreter of a tree's own environment, else the running one."""
    own = root / ".venv" / "bin" / "python"
    return str(own.absolute()) if own.exists() and root.resolve() != ROOT else sys.executable


def overlay_of(root: Path, into: Path) -> Path:
    """Makes the directory that workers of the tree import from, and returns it.

    What the tree lacks of this project's packages is the running one's too: an installed copy might be anybody's.
    """
    into.mkdir(parents=True)
    (into / MEASURING).symlink_to(ROOT / MEASURING)
    own = {entry.name: entry for entry in sorted(root.iterdir()) if not entry.name.startswith(".")}
    for name, entry in {**{package: ROOT / package for package in PACKAGES}, **own}.items():
        if name not in (MEASURING, _ADAPTERS):
            (into / name).symlink_to(entry)
    adapters = own.get(_ADAPTERS, ROOT / _ADAPTERS)
    (into / _ADAPTERS).mkdir()
    for entry in sorted(adapters.iterdir()):
        if entry.name not in (*_CONTRACT, "__pycache__"):
            (into / _ADAPTERS / entry.name).symlink_to(entry)
    for name in _CONTRACT:
        (into / _ADAPTERS / name).symlink_to(ROOT / _ADAPTERS / name)
    return into
