"""Runs tail_first_order_interpreted.py."""

import pytest

from tests.linear_cross_entropy.own_process import check

pytestmark = pytest.mark.takes_s(60)


def test_in_a_process_of_its_own() -> None:
    check("tail_first_order_interpreted.py", interpreted=True)
