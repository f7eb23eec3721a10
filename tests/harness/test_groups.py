"""Who is measured beside whom."""

from __future__ import annotations

import itertools

import pytest

from harness.case import Case
from harness.running.groups import groups_of, places_on
from harness.suite import SuiteImplementation

GIB = 1 << 30
GEMMA2 = Case(tokens=8192, hidden_size=2304, vocab_size=256000)  # inputs of 1.16 GiB
ROWS = [SuiteImplementation(name=f"r{k}", path="a:b") for k in range(7)]


@pytest.mark.parametrize(("gib", "places"), [(139, 37), (24, 5), (4, 1), (1, 1)])
def test_inputs_and_contexts_of_waiting_workers_take_half_of_the_device(gib: int, places: int) -> None:
    assert places_on(GEMMA2, "cuda", gib * GIB) == places


def test_all_together_where_they_fit_with_the_second_worker() -> None:
    (group,) = groups_of(ROWS, "r2", "r2", places=8)
    assert (group.rows, group.guest, group.twice) == (tuple(ROWS), None, ROWS[2])


def test_groups_share_the_reference_and_the_first_has_the_a_a() -> None:
    first, second, third = groups_of(ROWS, "r2", "r2", places=4)
    assert [[row.name for row in group.rows] for group in (first, second, third)] == [
        ["r2", "r0", "r1"],
        ["r3", "r4", "r5"],
        ["r6"],
    ]
    assert (first.guest, first.twice) == (None, ROWS[2])
    assert [group.guest for group in (second, third)] == [ROWS[2]] * 2
    assert [group.twice for group in (second, third)] == [None] * 2


def test_without_the_reference_among_the_rows_there_are_no_guests() -> None:
    groups = groups_of(ROWS[3:], "r2", "r2", places=2)
    assert [[row.name for row in group.rows] for group in groups] == [["r3", "r4"], ["r5", "r6"]]
    assert all(group.guest is None and group.twice is None for group in groups)


def test_on_one_place_everybody_is_alone() -> None:
    groups = groups_of(ROWS, "r2", "r2", places=1)
    assert [group.rows for group in groups] == [(row,) for row in ROWS]
    assert all(group.guest is None and group.twice is None for group in groups)


@pytest.mark.parametrize(
    ("reference", "twice", "places", "count"),
    list(itertools.product(["r2", "none"], ["r2", "r5", None], range(1, 10), [1, 3, 7])),
)
def test_every_row_has_one_record_and_no_group_is_too_large(
    reference: str, twice: str | None, places: int, count: int
) -> None:
    groups = groups_of(ROWS[:count], reference, twice, places)
    assert sorted(row.name for group in groups for row in group.rows) == [row.name for row in ROWS[:count]]
    assert sum(group.twice is not None for group in groups) <= 1
    for group in groups:
        players = [*group.rows, *(row for row in (group.guest, group.twice) if row)]
        assert len(players) <= places
        assert group.guest not in group.rows
        assert group.twice is None or group.twice in group.rows
        has_reference = reference in [row.name for row in players]
        assert has_reference or places == 1 or reference not in [row.name for row in ROWS[:count]]
