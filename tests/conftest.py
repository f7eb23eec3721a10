"""Options of tests/benchmarks; here, since pytest must know them wherever under tests it is started."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("harness", "tests/benchmarks, with --benchmark-only")
    group.addoption("--harness-suite", default="suites/quick.yaml", metavar="FILE", help="suite to measure")
    group.addoption("--harness-only", action="append", default=[], metavar="NAME", help="only this implementation")
    group.addoption("--harness-where", action="append", default=[], metavar="KEY=VALUE", help="only these cases")
    group.addoption("--harness-out", metavar="DIR", help="run directory to create; default runs/SUITE-TIME")
