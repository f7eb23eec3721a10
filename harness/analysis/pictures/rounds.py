"""What happened round by round: every sample against its row's median, and the SM clock beneath."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.analysis.formats import ms, number, setting
from harness.analysis.pictures.picture import (
    DISAGREES_COLOUR,
    FLOOR_COLOUR,
    MOST_PANELS,
    NO_GPU_TIMES,
    OK_COLOUR,
    SMALL,
    TINY,
    WIDTH_INCHES,
    Picture,
    Skipped,
    agrees,
    first_of,
    say_left_out,
    timed_rows,
)
from harness.record import Record, Times

STEM = "rounds"
GEMM, COPY = "GEMM", "copy"
_LANE_INCHES = 0.21
_CLOCK_INCHES = 0.8
_SLOWDOWNS = 8 | 32 | 64 | 128  # NVML: hw slowdown, sw thermal, hw thermal, hw power brake
_LEAST_SCALE = 0.02  # a lane is no finer than ±2 %: what is quieter than that is to look quiet


@dataclass(frozen=True)
class Lane:
    """The samples of one row, in order, and when each was taken, in rounds."""

    name: str
    time: tuple[float, ...]
    samples_ms: tuple[float, ...]
    colour: str


def rounds(records: Sequence[Record]) -> Picture | Skipped:
    """A panel per case, two side by side: a lane per row and one for the GEMM, all at one scale."""
    timed = timed_rows(records)
    if not timed:
        return Skipped(STEM, NO_GPU_TIMES)
    cases: dict[str, list[Record]] = {}
    for record in timed:
        cases.setdefault(record.case_id, []).append(record)
    shown = list(cases.values())[:MOST_PANELS]
    columns = min(2, len(shown))
    lines = -(-len(shown) // columns)
    lanes = [_lanes(case) for case in shown]
    scale = _scale([lane for case in lanes for lane in case])
    tallest = _LANE_INCHES * max(map(len, lanes))
    figure = Figure(figsize=(WIDTH_INCHES, (tallest + _CLOCK_INCHES + 0.95) * lines), layout="constrained")
    panels = figure.subplots(
        2 * lines, columns, squeeze=False, gridspec_kw={"height_ratios": [tallest, _CLOCK_INCHES] * lines}
    )
    for place in range(lines * columns):
        line, column = divmod(place, columns)
        traces, clock = panels[2 * line][column], panels[2 * line + 1][column]
        if place >= len(shown):
            traces.set_axis_off()
            clock.set_axis_off()
            continue
        _draw_lanes(traces, lanes[place], scale)
        _draw_clock(clock, shown[place])
        clock.sharex(traces)
        traces.tick_params(labelbottom=False)
        # a heading of two lines: half of the page has no room for one
        shape, _, rest = setting(shown[place][0].case).partition(f", {shown[place][0].case.dtype}, ")
        beta = number(shown[place][0].case.label_smoothing)
        traces.set_title(f"{rest}, β = {beta}\n{shape}", fontsize=SMALL, loc="left")
    figure.suptitle(
        f"each sample against its row's median (beside the name, in ms), slower is higher; a lane is ±{scale:.0%}\n"
        "clock: median and range over the rows of a round; grey: thermal or hardware slowdown",
        fontsize=SMALL,
    )
    say_left_out(figure, first_of(len(shown), len(cases), "cases"))
    return Picture(STEM, figure)


def moments(turns: Sequence[int]) -> tuple[float, ...]:
    """When samples were taken: those of a round one after the other within it."""
    count = Counter(turns)
    seen: Counter[int] = Counter()
    found = []
    for turn in turns:
        found.append(turn + (seen[turn] + 0.5) / count[turn])
        seen[turn] += 1
    return tuple(found)


def _lanes(records: Sequence[Record]) -> list[Lane]:
    """The rows in the order of the records, a second worker beside its first, then the GEMM and the copy of every group
    of workers that had one.
    """
    lanes = []
    for record in records:
        times = record.times or Times()
        colour = OK_COLOUR if agrees(record) else DISAGREES_COLOUR
        lanes.append(Lane(record.implementation, moments(times.round), tuple(times.fwd_bwd_ms), colour))
        if record.again is not None and record.again.round:
            again = record.again
            lanes.append(Lane(f"{record.implementation}, A/A", moments(again.round), tuple(again.fwd_bwd_ms), colour))
    for samples in dict.fromkeys(tuple(record.gemm_ms) for record in records if record.gemm_ms):
        companion = next(record for record in records if tuple(record.gemm_ms) == samples)
        # a GEMM's samples do not carry their round: it has as many a turn as the rows have, in every round
        turn = Counter((companion.times or Times()).round).most_common(1)[0][1]
        turns = [place // turn for place in range(len(samples))]
        lanes.append(Lane(GEMM, moments(turns), samples, FLOOR_COLOUR))
        probes = companion.probes
        if probes is not None and probes.copy_ms:
            lanes.append(Lane(COPY, moments(probes.round), tuple(probes.copy_ms), FLOOR_COLOUR))
    return lanes


def _scale(lanes: Sequence[Lane]) -> float:
    """Half the height of a lane, as a fraction of the median: nearly all samples of nearly all rows fit in it."""
    deviations = sorted(abs(sample / median(lane.samples_ms) - 1) for lane in lanes for sample in lane.samples_ms)
    typical = deviations[int(0.98 * (len(deviations) - 1))]
    return max(_LEAST_SCALE, -(-typical // 0.01) * 0.01)


def _draw_lanes(axes: Axes, lanes: Sequence[Lane], scale: float) -> None:
    for place, lane in enumerate(lanes):
        middle = median(lane.samples_ms)
        if place % 2 == 0:
            axes.axhspan(place - 0.5, place + 0.5, color="#f2f2f2", linewidth=0, zorder=0)
        axes.axhline(place, color="#bbbbbb", linewidth=0.5, zorder=1)
        # slower is higher; what leaves the lane stays at its edge, as a triangle
        shares = [(sample / middle - 1) / scale for sample in lane.samples_ms]
        heights = [place - 0.5 * max(-1.0, min(1.0, share)) for share in shares]
        axes.plot(lane.time, heights, color=lane.colour, linewidth=0.7, zorder=2)
        for beyond, marker, size in ((0, "o", 1.8), (1, "^", 3.5), (-1, "v", 3.5)):
            chosen = [at for at, share in enumerate(shares) if (share > 1) - (share < -1) == beyond]
            x, y = [lane.time[at] for at in chosen], [heights[at] for at in chosen]
            axes.plot(x, y, marker, color=lane.colour, markersize=size, zorder=3)
    axes.set_ylim(len(lanes) - 0.4, -0.6)
    names = [f"{lane.name}  {ms(median(lane.samples_ms))}" for lane in lanes]
    axes.set_yticks(range(len(lanes)), names, fontsize=TINY)
    for tick, lane in zip(axes.get_yticklabels(), lanes, strict=True):
        tick.set_color("#222222" if lane.colour != DISAGREES_COLOUR else DISAGREES_COLOUR)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.grid(axis="x", alpha=0.3)


def _draw_clock(axes: Axes, records: Sequence[Record]) -> None:
    clocks: dict[int, list[int]] = {}
    for record in records:
        times = record.times or Times()
        for turn, clock in zip(times.round, times.sm_clock_mhz, strict=False):  # empty without NVML
            clocks.setdefault(turn, []).append(clock)
    axes.set_xlabel("round", fontsize=SMALL)
    axes.tick_params(labelsize=TINY)
    axes.grid(alpha=0.3)
    if not clocks:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no clock recorded", transform=axes.transAxes, ha="center", va="center", fontsize=TINY)
        return
    turns = sorted(clocks)
    middles = [turn + 0.5 for turn in turns]
    lows, highs = [min(clocks[turn]) for turn in turns], [max(clocks[turn]) for turn in turns]
    axes.fill_between(middles, lows, highs, color="#56B4E9", alpha=0.35, linewidth=0)
    axes.plot(middles, [median(clocks[turn]) for turn in turns], color=OK_COLOUR, linewidth=1.2)
    axes.set_ylabel("SM clock,\nMHz", fontsize=TINY)
    for turn in _slowed_down(records):
        axes.axvspan(turn, turn + 1, color="#000000", alpha=0.25, linewidth=0)


def _slowed_down(records: Sequence[Record]) -> list[int]:
    """The rounds in which NVML named a slowdown other than the power limit's, which is usual."""
    found = set()
    for record in records:
        times = record.times or Times()
        reasons = zip(times.round, times.throttle_reasons, strict=False)  # empty without NVML
        found |= {turn for turn, bits in reasons if bits & _SLOWDOWNS}
    return sorted(found)
