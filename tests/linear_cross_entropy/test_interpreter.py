"""Collects the checks that need a process of their own; see own_processes.py."""

import re

import pytest

from tests.linear_cross_entropy.own_processes import FILES, OwnProcesses


@pytest.mark.parametrize("file", FILES)
def test_in_a_process_of_its_own(file: str, own_processes: OwnProcesses) -> None:
    code, printed = own_processes.result(file)
    print(printed[-1500:])
    assert code == 0, printed[-6000:]
    assert re.search(r"\d+ passed", printed) and "skipped" not in printed
