"""Options of tests/benchmarks, which pytest must know wherever under tests it is started; what xdist's workers need."""

from __future__ import annotations

import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: workers share the cores


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("harness", "tests/benchmarks, with --benchmark-only")
    group.addoption("--harness-suite", default="suites/quick.yaml", metavar="FILE", help="suite to measure")
    group.addoption("--harness-only", action="append", default=[], metavar="NAME", help="only this implementation")
    group.addoption("--harness-where", action="append", default=[], metavar="KEY=VALUE", help="only these cases")
    group.addoption("--harness-out", metavar="DIR", help="run directory to create; default runs/SUITE-TIME")


def pytest_sessionstart() -> None:
    os.environ.pop("PYTEST_XDIST_WORKER", None)  # a pytest that a test starts is no worker, and may benchmark


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take longest first, or one worker ends long after the others."""
    items.sort(key=_seconds, reverse=True)  # stable: nothing else moves


def _seconds(item: pytest.Item) -> float:
    marker = item.get_closest_marker("takes_s")
    return marker.args[0] if marker else 0.0
