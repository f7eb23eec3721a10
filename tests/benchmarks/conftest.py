"""Measures a suite for pytest-benchmark; options in tests/conftest.py."""

from __future__ import annotations

from typing import Any

import pytest

import harness
from tests.benchmarks.cells import Cell, Measured, by_cell, cells, machine, measure

_RUN = pytest.StashKey[harness.Run]()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.config.getoption("benchmark_only"):
        parameters = cells(metafunc.config)
    else:
        reason = "a suite is measured with --benchmark-only alone"
        parameters = [pytest.param("", "", marks=pytest.mark.skip(reason=reason), id="suite")]
    metafunc.parametrize(("case_id", "implementation"), parameters)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """GPU, driver, versions, variables: --benchmark-compare warns where they are not those of the run before."""
    machine_info["harness"] = machine(config)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if _RUN in config.stash:
        terminalreporter.write_line(f"records in {config.stash[_RUN].path}")


@pytest.fixture(scope="session")
def measured(pytestconfig: pytest.Config) -> dict[Cell, Measured]:
    """Every cell of the plan."""
    pytestconfig.stash[_RUN] = measure(pytestconfig)
    return by_cell(pytestconfig.stash[_RUN])
