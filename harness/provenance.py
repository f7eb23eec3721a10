"""Which code a record was measured with."""

from __future__ import annotations

import datetime
import subprocess
import sys
from pathlib import Path

REVISION_FILE = "REVISION"  # an exported tree without .git says here what it is


ROOT = Path(__file__).resolve().parents[1]  # of this harness, wherever it is run from
PACKAGES = ("harness", "implementations", "kernels")


def revision(root: Path = ROOT, given: str | None = None) -> tuple[str | None, bool | None]:
    """(commit, dirty) of the tree at `root`: `given` if it is, else what git says, else the REVISION file.

    Dirty is any change of a tracked file, and any untracked one in the packages that are measured.

    A trailing "-dirty" in `given` or in the file marks uncommitted changes. (None, None) if nobody knows.
    """
    if given is None and (root / ".git").exists():
        commit = _git(root, "rev-parse", "HEAD")
        if commit is not None:
            changed = _git(root, "status", "--porcelain", "--untracked-files=no")
            untracked = _git(root, "ls-files", "--others", "--exclude-standard", "--", *PACKAGES)
            return commit, bool(changed or untracked)
    if given is None and (root / REVISION_FILE).is_file():
        given = (root / REVISION_FILE).read_text().strip()
    if not given:
        return None, None
    return given.removesuffix("-dirty"), given.endswith("-dirty")


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def now() -> str:
    """This moment in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def command_line() -> list[str]:
    """The command as it was typed, the program by its module name."""
    return ["python", "-m", "harness", *sys.argv[1:]]
