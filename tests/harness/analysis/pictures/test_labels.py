"""Names never overlap, keep the order of their points, and stay in place where there is room."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from harness.analysis.pictures.labels import Label, place_beside, spread


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_spread_keeps_order_gap_and_bounds(wanted: list[float]) -> None:
    found = spread(wanted, 0.05, 0.0, 1.0)
    ordered = [found[place] for place in sorted(range(len(wanted)), key=lambda place: wanted[place])]
    assert all(after - before > 0.05 - 1e-9 for before, after in itertools.pairwise(ordered))
    assert min(found) > -1e-9
    assert max(found) < 1 + 1e-9


def test_spread_leaves_alone_what_has_room() -> None:
    assert spread([0.9, 0.1, 0.5], 0.1, 0.0, 1.0) == [0.9, 0.1, 0.5]
    assert spread([0.5, 0.5], 0.1, 0.0, 1.0) == pytest.approx([0.45, 0.55])
    assert spread([], 0.1, 0.0, 1.0) == []


def test_spread_gives_up_the_gap_where_there_is_no_room() -> None:
    assert spread([0.5] * 5, 1.0, 0.0, 1.0) == pytest.approx([0, 0.25, 0.5, 0.75, 1])


def test_names_of_a_crowd_do_not_overlap() -> None:
    figure = Figure(figsize=(8, 3.3))
    axes = figure.subplots()
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 10)
    # six points as good as on each other, one at the right edge, one at the top
    labels = [Label(f"implementation-{place}", 1.0, 5 + place / 100, "black") for place in range(6)]
    labels += [Label("at-the-right-edge", 9.9, 5.0, "black"), Label("at-the-top", 5.0, 9.95, "black")]
    place_beside(axes, labels, 8)
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert len(boxes) == len(labels)
    for one, other in itertools.combinations(boxes.values(), 2):
        covered = min(one.y1, other.y1) - max(one.y0, other.y0)
        beside = one.x1 <= other.x0 or other.x1 <= one.x0
        assert beside or covered < 0.15 * one.height  # of a line's height, 15 % are air
    frame = axes.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes.values())
    heights = [boxes[f"implementation-{place}"].y0 for place in range(6)]
    assert heights == sorted(heights)
