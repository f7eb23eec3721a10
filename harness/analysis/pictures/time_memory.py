"""Time against memory: what each implementation costs, the Pareto front of those that agree, and the floors."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from harness.analysis.formats import MIB, mib, ms
from harness.analysis.pictures.picture import (
    FLOOR_COLOUR,
    NO_GPU_TIMES,
    OK_COLOUR,
    Picture,
    Skipped,
    agrees,
    timed_rows,
)
from harness.analysis.pictures.points import NOTE, points
from harness.analysis.row import Row, median_of, to_row
from harness.record import Record

STEM = "time-memory"
DENSE_GEMMS = 3  # logits and the two gradients: what no dense computation does without


def time_memory(records: Sequence[Record]) -> Picture | Skipped:
    """A panel per case: fwd+bwd ms over peak MiB, both logarithmic."""
    timed = timed_rows(records)
    if not timed:
        return Skipped(STEM, NO_GPU_TIMES)
    cases: dict[str, list[Record]] = {}
    for record in timed:
        if record.memory is not None and record.memory.fwd_bwd_peak_bytes > 0:
            cases.setdefault(record.case_id, []).append(record)
    if not cases:
        return Skipped(STEM, "no timed row has a memory peak")
    return points(STEM, cases, _place, _draw, ("fwd+bwd peak, MiB", "fwd+bwd, ms"), _key())


def pareto_front(rows: Sequence[Row]) -> list[Row]:
    """Those for which no other is at least as fast and as small and better in one, from the smallest peak upwards."""
    front: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.fwd_bwd_peak_bytes or 0, row.fwd_bwd_ms or 0.0)):
        if not front or (row.fwd_bwd_ms or 0.0) < (front[-1].fwd_bwd_ms or 0.0):
            front.append(row)
    return front


def _draw(axes: Axes, records: Sequence[Record]) -> None:
    front = pareto_front([to_row(record) for record in records if agrees(record)])
    if front:
        corners = [((row.fwd_bwd_peak_bytes or 0) / MIB, row.fwd_bwd_ms or 0.0) for row in front]
        axes.step(*zip(*corners, strict=True), where="post", color=OK_COLOUR, alpha=0.45, linewidth=2, zorder=2)
    probes = dict.fromkeys(tuple(record.gemm_ms) for record in records)  # one of each group of workers
    gemm_ms = median_of([sample for probe in probes for sample in probe])
    xs, ys = zip(*(_place(record) for record in records), strict=True)
    floor = records[0].gradient_floor_bytes
    dense_ms = DENSE_GEMMS * gemm_ms if gemm_ms else None
    low, high = min(*ys, dense_ms or ys[0]), max(*ys, dense_ms or ys[0])
    left, right = min(*xs, floor / MIB), max(xs)
    # room right of the last point for its name, and around the floors for theirs
    axes.set_xlim(left / (right / left) ** 0.06 / 1.02, right * (right / left) ** 0.17 * 1.02)
    axes.set_ylim(low / (high / low) ** 0.14 / 1.02, high * (high / low) ** 0.14 * 1.02)
    axes.axvline(floor / MIB, color=FLOOR_COLOUR, linestyle=":", linewidth=1.2, zorder=1)
    axes.annotate(
        f"gradients alone: {mib(floor)} MiB", (floor / MIB, 0.98), xycoords=("data", "axes fraction"),
        xytext=(4, -1), textcoords="offset points", va="top", **NOTE,
    )  # fmt: skip
    if dense_ms:
        axes.axhline(dense_ms, color=FLOOR_COLOUR, linestyle="--", linewidth=1.0, zorder=1)
        axes.annotate(
            f"{DENSE_GEMMS} GEMMs: {ms(dense_ms)} ms", (1, dense_ms), xycoords=("axes fraction", "data"),
            xytext=(-4, -2), textcoords="offset points", va="top", ha="right", **NOTE,
        )  # fmt: skip


def _place(record: Record) -> tuple[float, float]:
    row = to_row(record)
    return (row.fwd_bwd_peak_bytes or 0) / MIB, row.fwd_bwd_ms or 0.0


def _key() -> list[Line2D]:
    return [
        Line2D([], [], color=OK_COLOUR, alpha=0.45, linewidth=2, label="nothing that agrees is better in both"),
        Line2D([], [], color=FLOOR_COLOUR, linestyle=":", label="floors"),
    ]
