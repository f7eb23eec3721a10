"""Files and directories that are there as a whole or not at all, whenever the process is killed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A path to write to; at the end of the block it is on the disk and becomes `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")  # two runs may fill one cache at once
    yield temporary
    _sync(temporary)
    temporary.replace(path)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory to fill; at the end of the block its files are on the disk and it becomes `path`.

    An older `path` is removed just before: only whoever can do without it for that moment writes one anew.
    """
    temporary = path.with_name(path.name + ".new")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a kill
    temporary.mkdir(parents=True)
    yield temporary
    for file in temporary.iterdir():
        _sync(file)
    if path.exists():
        shutil.rmtree(path)
    temporary.rename(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
