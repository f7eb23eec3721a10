"""The lines under a setting's table: its limits, its GEMM, what its marks mean, and what its columns do not show."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness.analysis.formats import mib, ms, number, percent, seconds, shape
from harness.analysis.row import median_of, to_row
from harness.case import Case
from harness.cost import gemm_flop
from harness.record import Record, Status

IN_FORWARD = "†"
WIDE = 0.02  # of the median: a difference this small between two rows may be noise


def legend(records: Sequence[Record]) -> list[str]:
    """The lines of one setting, as a markdown list."""
    limits = " or ".join(dict.fromkeys(number(record.max_excess) for record in records))
    floor = mib(records[0].gradient_floor_bytes)
    lines = [f"dE and dC excess must be ≤ {limits}; the floor, the gradients themselves, is {floor} MiB."]
    lines += _gemm(records)
    if any(record.grads_in_forward for record in records):
        lines.append(f"{IN_FORWARD} computes gradients in the forward: its fwd and bwd columns do not compare.")
    timed = [record for record in records if record.times is not None and record.times.fwd_bwd_ms]
    if any(record.status is not Status.OK for record in timed):
        lines.append("(time) of a row that is not ok; it is not ranked.")
    if any(record.provenance.device == "cpu" for record in timed):
        lines.append("Times on a CPU are for orientation only.")
    elif wide := _by_smoothing(records, _wide_interval):
        lines.append(f"Interval of the median wider than {percent(WIDE)}: {wide}.")
    if settled := _by_smoothing(records, _settling):
        lines.append(f"Settled in (first call in parentheses): {settled}.")
    return [f"- {line}" for line in lines]


def _by_smoothing(records: Sequence[Record], words_of: Callable[[Record], str | None]) -> str:
    """`cce 4 s, liger 2 s`, for each label smoothing if there are several: `at β = 0.1 cce 4 s; at β = 0 cce 3 s`."""
    smoothings = sorted({record.case.label_smoothing for record in records}, reverse=True)
    texts = []
    for smoothing in smoothings:
        block = [record for record in records if record.case.label_smoothing == smoothing]
        found = [f"{record.implementation} {words}" for record in block if (words := words_of(record))]
        if found:
            texts.append((f"at β = {number(smoothing)} " if len(smoothings) > 1 else "") + ", ".join(found))
    return "; ".join(texts)


def _wide_interval(record: Record) -> str | None:
    width = to_row(record).fwd_bwd_interval
    return percent(width) if width is not None and width > WIDE else None


def _settling(record: Record) -> str | None:
    times = record.times
    if times is None or times.settle_s is None or record.interpreted:
        return None
    first = f" ({seconds(times.first_call_s)})" if times.first_call_s is not None else ""
    return f"{seconds(times.settle_s)}{first}"


def _gemm(records: Sequence[Record]) -> list[str]:
    """What one GEMM took, for each label smoothing if they differ: it is measured beside the rows of every case."""
    samples: dict[float, list[float]] = {}
    for record in records:
        if record.gemm_ms:
            samples.setdefault(record.case.label_smoothing, []).extend(record.gemm_ms)
    if not samples:
        return []
    case = records[0].case
    texts: dict[str, list[str]] = {}
    for smoothing, taken in sorted(samples.items(), reverse=True):
        texts.setdefault(_gemm_speed(case, taken), []).append(f"β = {number(smoothing)}")
    speeds = "; ".join(text if len(texts) == 1 else f"{text} ({', '.join(where)})" for text, where in texts.items())
    on_gpu = records[0].provenance.device == "cuda"
    dtype, library = ("bfloat16", "cuBLAS") if on_gpu else (case.dtype, "torch on the CPU")
    return [f"One GEMM, {shape(case)} in {dtype} by {library}: {speeds}."]


def _gemm_speed(case: Case, samples: list[float]) -> str:
    taken = median_of(samples) or 0.0
    tflops = gemm_flop(case) / taken / 1e9 if taken else 0.0
    return f"median {ms(taken)} ms, {tflops:.3g} TFLOP/s"
