"""How time and memory grow with N, D and V: log-log, with the exponent of each fitted in the legend."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from harness.analysis.formats import MIB, counted, inputs, number
from harness.analysis.pictures.lines import Point, draw_line, key, slope
from harness.analysis.pictures.picture import (
    NO_GPU_TIMES,
    SMALL,
    TINY,
    WIDTH_INCHES,
    Picture,
    Skipped,
    Style,
    agrees,
    first_of,
    plain_log_ticks,
    say_left_out,
    styles,
    timed_rows,
)
from harness.analysis.row import Row, to_row
from harness.case import Case
from harness.record import Record

TIME_STEM, MEMORY_STEM = "scaling-time", "scaling-memory"
FEWEST_POINTS = 3  # through two of them every line is straight
MOST_SETTINGS = 4
_AXES = {"N": "tokens", "D": "hidden_size", "V": "vocab_size"}

Measure = Callable[[Row], float | None]
Curves = dict[str, dict[str, list[Point]]]  # by N, D, V, then by implementation


def time_scaling(records: Sequence[Record]) -> Picture | Skipped:
    """fwd+bwd ms over N, D and V; a row of panels per setting."""
    return _scaling(records, TIME_STEM, "fwd+bwd, ms", lambda row: row.fwd_bwd_ms)


def memory_scaling(records: Sequence[Record]) -> Picture | Skipped:
    """fwd+bwd peak MiB over N, D and V; a row of panels per setting."""
    return _scaling(records, MEMORY_STEM, "fwd+bwd peak, MiB", _peak_mib)


def curves_by_setting(records: Sequence[Record], measure: Measure) -> dict[Case, Curves]:
    """The lines of every setting (a case but for its shape) that vary one of N, D, V at least three times.

    Where one axis varies around several values of the others, the values with most cases are taken.
    """
    rows = [(record, value) for record in records if (value := measure(to_row(record)))]
    settings: dict[Case, Curves] = {}
    for name, field in _AXES.items():
        lines: dict[Case, list[tuple[Record, float]]] = {}
        for record, value in rows:
            lines.setdefault(record.case.model_copy(update={field: 1}), []).append((record, value))
        widest: dict[Case, tuple[int, Case]] = {}
        for rest, members in lines.items():
            setting = rest.model_copy(update=dict.fromkeys(_AXES.values(), 1))
            points = len({getattr(record.case, field) for record, _ in members})
            if points >= FEWEST_POINTS and points > widest.get(setting, (0, rest))[0]:
                widest[setting] = (points, rest)
        for setting, (_, rest) in widest.items():
            found = settings.setdefault(setting, {}).setdefault(name, {})
            for record, value in lines[rest]:
                point = Point(getattr(record.case, field), value, agrees(record))
                found.setdefault(record.implementation, []).append(point)
    return settings


def _scaling(records: Sequence[Record], stem: str, unit: str, measure: Measure) -> Picture | Skipped:
    timed = timed_rows(records)
    if not timed:
        return Skipped(stem, NO_GPU_TIMES)
    settings = curves_by_setting(timed, measure)
    if not settings:
        return Skipped(stem, "neither N nor D nor V takes three values with all else equal")
    style = styles(records)
    shown = list(settings.items())[:MOST_SETTINGS]
    legend_lines = max(len(_names(curves)) + 1 for _, curves in shown) // 2
    legend_inches = 0.165 * legend_lines + 0.25
    figure = Figure(figsize=(WIDTH_INCHES, (3.0 + legend_inches) * len(shown)), layout="constrained")
    grid = figure.add_gridspec(2 * len(shown), 3, height_ratios=[3.0, legend_inches] * len(shown))
    for place, (setting, curves) in enumerate(shown):
        panels = [figure.add_subplot(grid[2 * place, column]) for column in range(3)]
        for axes, name in zip(panels, _AXES, strict=True):
            _panel(axes, name, curves.get(name, {}), style)
        panels[0].set_ylabel(unit, fontsize=SMALL + 1)
        panels[0].set_title(_title(setting), fontsize=SMALL + 1.5, loc="left")
        legend = figure.add_subplot(grid[2 * place + 1, :])
        legend.set_axis_off()
        handles = [key(_with_slopes(name, curves), style[name], _never_agrees(name, curves)) for name in _names(curves)]
        legend.legend(
            handles=handles, loc="upper center", ncols=2, fontsize=TINY + 0.5, frameon=False, borderaxespad=0,
            title="fitted exponents: time or memory grows with this power (hollow: not ok)", title_fontsize=SMALL,
        )  # fmt: skip
    say_left_out(figure, first_of(len(shown), len(settings), "settings"))
    return Picture(stem, figure)


def _panel(axes: Axes, name: str, lines: dict[str, list[Point]], style: dict[str, Style]) -> None:
    axes.set_xlabel(name, fontsize=SMALL + 1)
    if not lines:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, f"{name} does not vary", ha="center", va="center", fontsize=SMALL, color="#555555")
        return
    axes.set_xscale("log")
    axes.set_yscale("log")
    for implementation, points in lines.items():
        draw_line(axes, points, style[implementation])
    plain_log_ticks(axes, "y")
    values = sorted({point.x for points in lines.values() for point in points})
    axes.xaxis.set_major_locator(FixedLocator(values))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _power_of_two(value)))
    axes.tick_params(axis="both", labelsize=TINY)
    axes.grid(alpha=0.25)


def _names(curves: Curves) -> list[str]:
    return list(dict.fromkeys(name for lines in curves.values() for name in lines))


def _never_agrees(name: str, curves: Curves) -> bool:
    return not any(point.agrees for lines in curves.values() for point in lines.get(name, []))


def _with_slopes(name: str, curves: Curves) -> str:
    fitted = {axis: slope(lines.get(name, [])) for axis, lines in curves.items()}
    words = "  ".join(f"{axis} {value:.2f}" for axis, value in fitted.items() if value is not None)
    return f"{name}:  {words}" if words else f"{name}:  under {counted(FEWEST_POINTS, 'point')}"


def _title(setting: Case) -> str:
    softcap = f", softcap {number(setting.softcap)}" if setting.softcap is not None else ""
    return f"β = {number(setting.label_smoothing)}, {setting.dtype}, {inputs(setting)}{softcap}"


def _power_of_two(value: float) -> str:
    whole = round(value)
    return f"{whole // 1024}k" if whole % 1024 == 0 else str(whole)


def _peak_mib(row: Row) -> float | None:
    return row.fwd_bwd_peak_bytes / MIB if row.fwd_bwd_peak_bytes is not None else None
