"""Names beside points such that no two overlap: in a plane, and in a column at the right edge."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

_CLEAR = 5.0  # points between a marker's centre and its name
_LEADER = 9.0  # a name further from its point than this gets a line to it, in points
_STEP = 3.0  # how finely places are tried, in points
_TRIES = 40  # steps upwards and downwards
_CROWD = 2  # points closer than so many lines of text from left to right have their names in one column


@dataclass(frozen=True)
class Label:
    """A name and the point it belongs to, in data coordinates."""

    text: str
    x: float
    y: float
    colour: str


def place_beside(axes: Axes, labels: Sequence[Label], size: float) -> None:
    """Writes each name at the nearest place where it covers no other name and no point, and stays inside the axes.

    The limits of the axes must be final and the figure laid out. Texts that the axes hold already are not covered
    either. Names of points above each other keep the points' order.
    """
    figure = cast(Figure, axes.get_figure(root=True))
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    pixels = figure.dpi / 72
    frame = axes.get_window_extent(renderer).padded(-2 * pixels)
    centres = {label: _point(axes.transData.transform((label.x, label.y))) for label in labels}
    taken = [_around(centre, 3.5 * pixels) for centre in centres.values()]
    taken += [text.get_window_extent(renderer) for text in axes.texts]
    heights = _in_crowds(list(centres.values()), 1.25 * size * pixels, frame)
    for label, height in zip(labels, heights, strict=True):
        text = axes.text(label.x, label.y, label.text, fontsize=size, color=label.colour, va="center", zorder=5)
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.3})  # lines end at names
        box = text.get_window_extent(renderer)
        place = _free_place((centres[label][0], height), box, taken, frame, pixels)
        taken.append(place)
        middle = (place.y0 + place.y1) / 2
        text.set_position(tuple(axes.transData.inverted().transform((place.x0, middle))))
        nearest = (float(np.clip(centres[label][0], place.x0, place.x1)), middle)
        if np.hypot(*np.subtract(centres[label], nearest)) > _LEADER * pixels:
            end = axes.transData.inverted().transform(nearest)
            axes.plot([label.x, end[0]], [label.y, end[1]], color="#999999", linewidth=0.6, zorder=1.5)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Heights near the wanted ones, in the same order, at least `gap` apart where low..high has room for that."""
    order = sorted(range(len(wanted)), key=lambda place: wanted[place])
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    blocks: list[list[float]] = []  # sum of (wanted - offset inside the block), and count
    for index in order:
        blocks.append([wanted[index], 1])
        while len(blocks) > 1 and _start(blocks[-2]) + blocks[-2][1] * gap > _start(blocks[-1]):
            after = blocks.pop()
            blocks[-1][0] += after[0] - after[1] * blocks[-1][1] * gap
            blocks[-1][1] += after[1]
    heights = [_start(block) + step * gap for block in blocks for step in range(int(block[1]))]
    for place, height in enumerate(heights):
        heights[place] = max(height, low + place * gap)
    for place in reversed(range(len(heights))):
        heights[place] = min(heights[place], high - (len(heights) - 1 - place) * gap)
    result = [0.0] * len(wanted)
    for index, height in zip(order, heights, strict=True):
        result[index] = height
    return result


def _in_crowds(centres: Sequence[Sequence[float]], gap: float, frame: Bbox) -> list[float]:
    """Heights for names, in pixels: those of points above each other are spread, so that their order is kept."""
    crowds: dict[int, list[int]] = {}
    for place in sorted(range(len(centres)), key=lambda place: centres[place][0]):
        near = [first for first in crowds if centres[place][0] - centres[first][0] < _CROWD * gap]
        crowds.setdefault(near[-1] if near else place, []).append(place)
    heights = [0.0] * len(centres)
    for crowd in crowds.values():
        spaced = spread([centres[place][1] for place in crowd], gap, frame.y0 + gap / 2, frame.y1 - gap / 2)
        for place, height in zip(crowd, spaced, strict=True):
            heights[place] = height
    return heights


def _start(block: Sequence[float]) -> float:
    return block[0] / block[1]


def _point(pair: Iterable[float]) -> tuple[float, float]:
    x, y = pair
    return float(x), float(y)


def _around(centre: Sequence[float], radius: float) -> Bbox:
    x, y = centre
    return Bbox.from_extents(x - radius, y - radius, x + radius, y + radius)


def _free_place(centre: Sequence[float], box: Bbox, taken: Sequence[Bbox], frame: Bbox, pixels: float) -> Bbox:
    """The free place nearest to the point; the one to its right if there is none."""
    offsets = sorted((step * _STEP * pixels for step in range(-_TRIES, _TRIES + 1)), key=abs)
    away = _CLEAR * pixels
    # right of the point, left of it, and further right where a crowd needs a second column
    lefts = (centre[0] + away, centre[0] - away - box.width, centre[0] + 6 * away, centre[0] - 6 * away - box.width)
    places = [
        (abs(up) + (0.0 if column < 2 else 4 * away), column, left, up)
        for column, left in enumerate(lefts)
        for up in offsets
    ]
    places.sort(key=lambda place: place[:2])
    half = box.height * 0.43  # a line of text has air above and below
    for _, _, left, up in places:
        found = Bbox.from_extents(left, centre[1] + up - half, left + box.width, centre[1] + up + half)
        inside = frame.x0 <= found.x0 and found.x1 <= frame.x1 and frame.y0 <= found.y0 and found.y1 <= frame.y1
        if inside and not any(found.overlaps(other) for other in taken):
            return found
    return Bbox.from_extents(lefts[0], centre[1] - half, lefts[0] + box.width, centre[1] + half)
