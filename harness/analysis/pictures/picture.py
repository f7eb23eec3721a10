"""A picture, or the reason why there is none; and which rows all pictures draw, in which colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from harness.calibration.figure_file import COLOURS, MARKERS
from harness.record import Record, Status

WIDTH_INCHES = 8.0  # a README shows 800 to 900 pixels: 10 points are 14 pixels there
MOST_PANELS = 8  # a reader looks at no more; the picture says how many it leaves out
SMALL, TINY = 8.0, 7.0  # points
OK_COLOUR, DISAGREES_COLOUR, FLOOR_COLOUR = COLOURS[0], COLOURS[1], "#555555"
NO_GPU_TIMES = "no row was timed on a GPU"
_LINES: tuple[tuple[float, tuple[float, ...] | None], ...] = (
    (0, None),
    (0, (4, 1.5)),
    (0, (1, 1)),
)  # the second seven rows are dashed, the third dotted


@dataclass(frozen=True)
class Picture:
    """A figure under the name of its files."""

    stem: str
    figure: Figure


@dataclass(frozen=True)
class Skipped:
    """A picture for which the records hold nothing."""

    stem: str
    reason: str


class Style(NamedTuple):
    """How an implementation's lines look."""

    colour: str
    marker: str
    line: tuple[float, tuple[float, ...] | None]  # offset and dashes; None is solid


def timed_rows(records: Sequence[Record]) -> list[Record]:
    """The rows with times that mean something: on a GPU, not computed, in the order of the records."""
    return [
        record
        for record in records
        if record.times is not None and record.times.fwd_bwd_ms and record.provenance.device == "cuda"
    ]


def styles(records: Sequence[Record]) -> dict[str, Style]:
    """A style for every timed implementation, the same in all pictures of a run."""
    names = list(dict.fromkeys(record.implementation for record in timed_rows(records)))
    found = {}
    for place, name in enumerate(names):
        turn, colour = divmod(place, len(COLOURS))
        found[name] = Style(COLOURS[colour], MARKERS[(colour + turn) % len(MARKERS)], _LINES[turn % len(_LINES)])
    return found


def agrees(record: Record) -> bool:
    """Whether a row's time may be ranked; those that may not are drawn hollow."""
    return record.status is Status.OK


def say_left_out(figure: Figure, words: str) -> None:
    """Writes at the figure's foot what it does not show, before it is laid out; nothing if it shows all."""
    if words:
        figure.supxlabel(words, fontsize=SMALL, color="#555555")


def first_of(shown: int, all_of_them: int, what: str) -> str:
    """`shown: the first 8 of 34 cases`; nothing if all are shown."""
    return "" if shown == all_of_them else f"shown: the first {shown} of {all_of_them} {what}"


def plain_log_ticks(axes: Axes, which: str) -> None:
    """Labels 20, 50, 1000 in place of powers of ten, no more than fit."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = sorted(axis.get_view_interval())
    span = high / low
    steps = [1.0] if span > 200 else [1.0, 2.0, 5.0] if span > 6 else [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0]
    axis.set_major_locator(LogLocator(base=10, subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="both", labelsize=SMALL)
