"""How numbers and cases are written in a table: about three digits, units in the column's head."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tabulate import tabulate

from harness.case import Case

DASH = "—"
MIB = 2**20


def figures_table(headers: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Markdown: the first column, names, to the left, all others to the right; cells as they are."""
    align = ["left", *["right"] * (len(headers) - 1)]
    return tabulate(body, headers=headers, tablefmt="pipe", colalign=align, disable_numparse=True)


def mib(value: int | None) -> str:
    """Bytes as MiB: 1163, 12.3, 1.1, 0.09; what is smaller than anyone cares for is <0.001."""
    if value is None:
        return DASH
    size = value / MIB
    if 0 < size < 0.001:
        return "<0.001"
    return f"{size:.0f}" if size >= 99.95 else f"{size:.1f}" if size >= 0.95 else f"{size:.2g}"


def ms(value: float | None) -> str:
    """Milliseconds: 223.4, 12.3, 4.35, 0.712."""
    if value is None:
        return DASH
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}" if value >= 0.9995 else f"{value:.3f}"


def ratio(value: float | None) -> str:
    """A ratio such as a time in GEMMs, a peak over its floor or an excess: 4.35, 12.5, 223, 1.2e+04."""
    if value is None:
        return DASH
    if value >= 9999.5:
        return f"{value:.1e}"
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def seconds(value: float) -> str:
    """Seconds, to tell a compilation from a call: 21 s, 1.3 s, 0.04 s."""
    return f"{value:.0f} s" if value >= 9.95 else f"{value:.1f} s" if value >= 0.95 else f"{value:.1g} s"


def percent(value: float) -> str:
    """A fraction in percent: 3.61 %, 20 %."""
    return f"{100 * value:.3g} %"


def share(value: float | None) -> str:
    """A fraction in whole percent: 46 %."""
    return DASH if value is None else f"{100 * value:.0f} %"


def three_places(value: float) -> str:
    """A ratio of two rows of one run: 0.939, 1.004, 12.345."""
    return f"{value:.3f}"


def interval(low: float | None, high: float | None, written: Callable[[float], str]) -> str:
    """Both ends of an interval: 71.9-73.4."""
    return DASH if low is None or high is None else f"{written(low)}-{written(high)}"


def error(value: float | None) -> str:
    """A fraction: 3.7e-03; an exact 0 is 0."""
    if value is None:
        return DASH
    return f"{value:.1e}" if value else "0"


def excesses(grad_input: float | None, grad_weight: float | None) -> str:
    """The excesses of dE and dC: 1.02 / 0.98."""
    if grad_input is None and grad_weight is None:
        return DASH
    return f"{ratio(grad_input)} / {ratio(grad_weight)}"


def counted(count: int, noun: str) -> str:
    """1 case, 3 cases."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def number(value: float) -> str:
    """A parameter as it was given: 0.1, 30."""
    return f"{value:g}"


def shape(case: Case) -> str:
    """N x D x V."""
    return f"{case.tokens} x {case.hidden_size} x {case.vocab_size}"


def inputs(case: Case) -> str:
    """The inputs with their parameters: zipf-medium, gaussian (std 1)."""
    parameters = ", ".join(
        f"{name} {number(value) if isinstance(value, float) else value}"
        for name, value in case.inputs.parameters.items()
    )
    return f"{case.inputs.label} ({parameters})" if parameters else case.inputs.label


def setting(case: Case) -> str:
    """Everything about a case but its label smoothing; what has its default is left out (the report's head says so)."""
    parts = [f"N {case.tokens}, D {case.hidden_size}, V {case.vocab_size}", case.dtype, inputs(case)]
    if case.softcap is not None:
        parts.append(f"softcap {number(case.softcap)}")
    if case.ignored_fraction:
        parts.append(f"{case.ignored_fraction:.3g} of the rows ignored")
    if case.reduction != "mean":
        parts.append(f"reduction {case.reduction}")
    if case.linear_bias:
        parts.append("linear bias")
    if case.seed:
        parts.append(f"seed {case.seed}")
    return ", ".join(parts)
