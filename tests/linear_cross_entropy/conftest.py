"""Begins the files that need a process of their own before the first test, and asks for their results last."""

import tempfile
from pathlib import Path

import pytest

from tests.linear_cross_entropy.own_processes import FILES, OwnProcesses

UNDER_WAY = pytest.StashKey[OwnProcesses]()
ASKS = "own_processes"  # the fixture of tests that ask for a result


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_asks)  # stable: nothing else moves


def pytest_collection_finish(session: pytest.Session) -> None:
    wanted = [file for file in FILES if any(_asks(item) and f"[{file}]" in item.name for item in session.items)]
    if wanted and not session.config.option.collectonly:
        directory = tempfile.TemporaryDirectory(prefix="own-processes-")
        session.config.add_cleanup(directory.cleanup)
        session.config.stash[UNDER_WAY] = OwnProcesses(wanted, Path(directory.name))
        session.config.add_cleanup(session.config.stash[UNDER_WAY].stop)


@pytest.fixture(scope="session")
def own_processes(pytestconfig: pytest.Config) -> OwnProcesses:
    """Every file that was asked for, under way since the tests began."""
    return pytestconfig.stash[UNDER_WAY]


def _asks(item: pytest.Item) -> bool:
    return ASKS in getattr(item, "fixturenames", ())
