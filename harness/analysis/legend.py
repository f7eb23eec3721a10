"""The lines under a setting's table: its limits, its GEMM, what its marks mean, and what its columns do not show."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness.analysis.formats import interval, mib, ms, number, percent, ratio, seconds, shape, three_places
from harness.analysis.row import median_of
from harness.analysis.rows import Rows
from harness.analysis.statistics.detection import Finding, Kind
from harness.analysis.statistics.rows import GEMM, TARGET_INTERVAL, gemm_findings
from harness.case import Case
from harness.cost import FORWARD_BACKWARD_GEMMS, FORWARD_GEMMS, counted_tokens, gemm_flop
from harness.interval import FEWEST_ROUNDS
from harness.record import Record, Status

IN_FORWARD = "†"
_HEADS = {  # of the lines that name rows with a finding
    Kind.DRIFT: "Drift, which ratios of one round do not see",
    Kind.ORDER_BIAS: "Order",
    Kind.THROTTLING: "Throttling",
    Kind.BIMODALITY: "Two clocks",
    Kind.ALLOCATION: "Asked the device for memory (cudaMalloc) while timed",
}


def legend(records: Sequence[Record], rows: Rows) -> list[str]:
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
    else:
        lines += _doubts(records, rows)
    if settled := _by_smoothing(records, _settling):
        lines.append(f"Settled in (first call in parentheses): {settled}.")
    return [f"- {line}" for line in lines]


def _doubts(records: Sequence[Record], rows: Rows) -> list[str]:
    """What limits the times of a GPU: noise, too few rounds, drift, order, throttling."""
    lines = []
    if noise := _by_smoothing(records, lambda record: _noise(record, rows)):
        lines.append(f"A/A, a row over itself in the same rounds: {noise}.")
    if few := _by_smoothing(records, _too_few_rounds):
        lines.append(f"No 95 % interval, for fewer than {FEWEST_ROUNDS} rounds: {few}.")
    if wide := _by_smoothing(records, lambda record: _wide(record, rows)):
        lines.append(
            f"95 % interval of the ratio to the reference (its own: of the time) wider than "
            f"{percent(TARGET_INTERVAL)}: {wide}."
        )
    if fast := _by_smoothing(records, lambda record: _below_its_products(record, rows)):
        lines.append(f"Faster than cuBLAS's products, for work left out or logits that are not written: {fast}.")
    for kind, head in _HEADS.items():
        found = _by_smoothing(records, lambda record, kind=kind: _found(record, rows, kind))  # type: ignore[misc]
        gemm = [f"the {GEMM} {finding.sentence}" for finding in _of_the_gemm(records) if finding.kind is kind]
        if found or gemm:
            lines.append(f"{head}: {'; '.join([*([found] if found else []), *gemm])}.")
    return lines


def _by_smoothing(records: Sequence[Record], words_of: Callable[[Record], str | None]) -> str:
    """`cce 4 s, liger 2 s`, for each label smoothing if there are several: `at β = 0.1 cce 4 s; at β = 0 cce 3 s`."""
    smoothings = sorted({record.case.label_smoothing for record in records}, reverse=True)
    texts = []
    for smoothing in smoothings:
        block = [record for record in records if record.case.label_smoothing == smoothing]
        found = [
            f"{record.implementation} {words}".rstrip() for record in block if (words := words_of(record)) is not None
        ]
        if found:
            texts.append((f"at β = {number(smoothing)} " if len(smoothings) > 1 else "") + ", ".join(found))
    return "; ".join(texts)


def _noise(record: Record, rows: Rows) -> str | None:
    """`0.998 [0.992-1.005] over 20 rounds, so 0.8 % or less is noise`."""
    found = rows.statistics(record)
    if found is None or found.noise is None:
        return None
    itself = found.noise.ratio
    ends = interval(itself.low, itself.high, three_places)
    margin = percent(found.noise.margin)
    return f"{three_places(itself.estimate)} [{ends}] in {itself.rounds} rounds, so less than {margin} is noise"


def _too_few_rounds(record: Record) -> str | None:
    times = record.times
    few = times is not None and 0 < len(set(times.round)) < FEWEST_ROUNDS
    return "" if few else None


def _wide(record: Record, rows: Rows) -> str | None:
    widths = [finding.size for finding in rows.findings(record) if finding.kind is Kind.TOO_WIDE]
    return percent(widths[0]) if widths else None


def _below_its_products(record: Record, rows: Rows) -> str | None:
    """`fwd+bwd 2.84 of 3 GEMMs`: what took less time than cuBLAS takes for its products; None if nothing did."""
    row = rows.of(record)
    fwd = row.fwd_no_grad_ms / row.gemm_ms if row.fwd_no_grad_ms is not None and row.gemm_ms else None
    share = counted_tokens(record.case, record.input_statistics) / record.case.tokens  # the GEMM is of all tokens
    below = [
        f"{name} {ratio(gemms)} of {products:.3g} GEMM{'s' * (products > 1)}"
        for name, gemms, products in (
            ("fwd+bwd", row.fwd_bwd_gemms, share * FORWARD_BACKWARD_GEMMS),
            ("no-grad fwd", fwd, share * FORWARD_GEMMS),
        )
        if gemms is not None and gemms < products
    ]
    return " and ".join(below) or None


def _found(record: Record, rows: Rows, kind: Kind) -> str | None:
    sentences = [finding.sentence for finding in rows.findings(record) if finding.kind is kind]
    return sentences[0] if sentences else None


def _of_the_gemm(records: Sequence[Record]) -> list[Finding]:
    """One look at each group of workers, whose rows share a GEMM."""
    companions = {(record.case_id, tuple(record.gemm_ms)): record for record in records if record.times is not None}
    return [finding for record in companions.values() for finding in gemm_findings(record)]


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
    lines = [f"One GEMM, {shape(case)} in {dtype} by {library}: {speeds}."]
    rates = [
        record.probes.copy_bytes / copy_ms / 1e6
        for record in records
        if record.probes is not None
        for copy_ms in record.probes.copy_ms
    ]
    if rates and on_gpu:
        lines.append(f"A copy within the GPU's memory in the same rounds: median {median_of(rates):.0f} GB/s.")
    return lines


def _gemm_speed(case: Case, samples: list[float]) -> str:
    taken = median_of(samples) or 0.0
    tflops = gemm_flop(case) / taken / 1e9 if taken else 0.0
    return f"median {ms(taken)} ms, {tflops:.3g} TFLOP/s"
