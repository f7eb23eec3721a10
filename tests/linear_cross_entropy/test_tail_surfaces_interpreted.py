"""Runs tail_surfaces_interpreted.py."""

import pytest

from tests.linear_cross_entropy.own_process import check

pytestmark = pytest.mark.takes_s(40)


def test_in_a_process_of_its_own() -> None:
    check("tail_surfaces_interpreted.py", interpreted=True)
