"""A row: one record flattened, every number of it computed from the raw samples when it is read.

Its field names are the columns of the frame and of the CSV and the keys of the JSON; see docs/reading-results.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from statistics import median

from pydantic import BaseModel, JsonValue

from harness import cost
from harness.analysis.statistics.bootstrap import Interval
from harness.analysis.statistics.rows import RowStatistics
from harness.floor import Floors, time_floors
from harness.record import Agreement, Memory, Record, Times


@dataclass(frozen=True)
class Row:
    """One case x implementation. None where there is no number."""

    suite: str
    case: str
    implementation: str
    status: str
    reason: str | None
    expected: str | None  # the suite's reason, if it foresees a status for this row
    as_expected: bool
    tokens: int
    hidden_size: int
    vocab_size: int
    label_smoothing: float
    softcap: float | None
    inputs: str
    input_parameters: dict[str, JsonValue]
    ignored_fraction: float
    reduction: str
    dtype: str
    linear_bias: bool
    seed: int
    path: str | None  # pkg.mod:obj of a suite's own implementation
    options: dict[str, JsonValue]
    reference: str  # the row that the suite compares others with
    analytic: bool
    interpreted: bool
    grads_in_forward: bool
    skips_work: bool
    fwd_no_grad_ms: float | None
    fwd_no_grad_peak_bytes: int | None
    fwd_ms: float | None
    bwd_ms: float | None
    fwd_bwd_ms: float | None  # with amortised_ms
    amortised_ms: float  # a call's share of what the implementation does rarely, which is in no sample
    fwd_bwd_ms_low: float | None  # the 95 % interval of the median
    fwd_bwd_ms_high: float | None
    fwd_bwd_gemms: float | None  # paired ratio; None on a CPU too, whose times are noise
    fwd_bwd_gemms_low: float | None
    fwd_bwd_gemms_high: float | None
    fwd_bwd_to_reference: float | None  # paired ratio
    fwd_bwd_to_reference_low: float | None
    fwd_bwd_to_reference_high: float | None
    noise: float | None  # the least difference from 1 that the row's A/A leaves to be seen
    findings: list[str]  # what may be wrong with its times
    fwd_bwd_tflops: float | None  # of the ideal work, three products of the tokens that count
    fwd_bwd_gb_per_s: float | None  # of the ideal work: inputs and gradients moved once
    fwd_bwd_floor_ms: float | None
    fwd_bwd_floor_share: float | None  # of the time: 1 is as fast as the GPU can be
    gemm_ms: float | None
    gemm_tflops: float | None
    copy_gb_per_s: float | None
    samples: int
    rounds: int
    fwd_peak_bytes: int | None
    bwd_peak_bytes: int | None
    fwd_bwd_peak_bytes: int | None
    retained_bytes: int | None
    gradient_floor_bytes: int
    fwd_bwd_peak_to_floor: float | None
    max_excess: float
    loss_error: float | None
    loss_limit: float | None
    grad_input_error: float | None
    grad_weight_error: float | None
    grad_bias_error: float | None
    grad_input_excess: float | None
    grad_weight_excess: float | None
    grad_bias_excess: float | None
    grad_input_row_error_p99: float | None
    grad_weight_row_error_p99: float | None
    sampled_rows: int | None
    diagnostics: dict[str, JsonValue]  # how the gradients are off; empty in records from before
    checks: dict[str, JsonValue]
    figures: dict[str, float]  # what the implementation says of itself
    first_call_s: float | None
    settle_s: float | None
    source_sha256: str | None  # of the file that implements it
    commit: str | None
    started: str
    device: str
    device_name: str


COLUMNS: tuple[str, ...] = tuple(field.name for field in fields(Row))
INTEGER_COLUMNS: tuple[str, ...] = tuple(field.name for field in fields(Row) if str(field.type).startswith("int"))
BOOLEAN_COLUMNS: tuple[str, ...] = tuple(field.name for field in fields(Row) if str(field.type) == "bool")
FLOAT_COLUMNS: tuple[str, ...] = tuple(field.name for field in fields(Row) if str(field.type).startswith("float"))
NESTED_COLUMNS: tuple[str, ...] = tuple(
    field.name for field in fields(Row) if str(field.type).startswith(("dict", "list"))
)


def to_row(record: Record, statistics: RowStatistics | None = None) -> Row:
    """Flattens a record: medians of its samples, and with its statistics ratios and intervals.

    Where too few rounds were played for an interval, the time in GEMMs is the quotient of the medians.
    """
    case, times = record.case, record.times or Times()
    counted = cost.counted_tokens(case, record.input_statistics)
    gemm_ms = median_of(record.gemm_ms)
    fwd_bwd_ms = median_of([taken + record.amortised_ms for taken in times.fwd_bwd_ms])
    peak = _memory(record.memory, "fwd_bwd_peak_bytes")
    on_cpu = record.provenance.device == "cpu"
    time = _Ends.of(statistics.time_ms if statistics else None)
    gemms = _Ends.of(statistics.to_gemm if statistics else None)
    if gemms.middle is None and fwd_bwd_ms is not None and gemm_ms and not on_cpu:
        gemms = _Ends(fwd_bwd_ms / gemm_ms)
    to_reference = _Ends.of(statistics.to_reference if statistics else None)
    floor_ms = _floors(record).higher_ms if fwd_bwd_ms is not None else None
    return Row(
        suite=record.suite,
        case=record.case_id,
        implementation=record.implementation,
        status=record.status.value,
        reason=record.reason,
        expected=record.expected.reason if record.expected else None,
        as_expected=record.as_expected,
        tokens=case.tokens,
        hidden_size=case.hidden_size,
        vocab_size=case.vocab_size,
        label_smoothing=case.label_smoothing,
        softcap=case.softcap,
        inputs=case.inputs.label,
        input_parameters=case.inputs.parameters,
        ignored_fraction=case.ignored_fraction,
        reduction=case.reduction,
        dtype=case.dtype,
        linear_bias=case.linear_bias,
        seed=case.seed,
        path=record.path,
        options=record.options,
        reference=record.reference,
        analytic=record.analytic,
        interpreted=record.interpreted,
        grads_in_forward=record.grads_in_forward,
        skips_work=record.skips_work,
        fwd_no_grad_ms=median_of(times.fwd_no_grad_ms),
        fwd_no_grad_peak_bytes=_memory(record.memory, "fwd_no_grad_peak_bytes"),
        fwd_ms=median_of(times.fwd_ms),
        bwd_ms=median_of(times.bwd_ms),
        fwd_bwd_ms=fwd_bwd_ms,
        amortised_ms=record.amortised_ms,
        fwd_bwd_ms_low=time.low,
        fwd_bwd_ms_high=time.high,
        fwd_bwd_gemms=gemms.middle,
        fwd_bwd_gemms_low=gemms.low,
        fwd_bwd_gemms_high=gemms.high,
        fwd_bwd_to_reference=to_reference.middle,
        fwd_bwd_to_reference_low=to_reference.low,
        fwd_bwd_to_reference_high=to_reference.high,
        noise=statistics.noise.margin if statistics and statistics.noise else None,
        findings=[finding.sentence for finding in statistics.findings] if statistics else [],
        fwd_bwd_tflops=_per_ms(cost.FORWARD_BACKWARD_GEMMS * cost.gemm_flop(case, counted) / 1e9, fwd_bwd_ms),
        fwd_bwd_gb_per_s=_per_ms(cost.forward_backward_bytes(case, counted) / 1e6, fwd_bwd_ms),
        fwd_bwd_floor_ms=floor_ms,
        fwd_bwd_floor_share=_per_ms(floor_ms, fwd_bwd_ms),
        gemm_ms=gemm_ms,
        gemm_tflops=_per_ms(cost.gemm_flop(case) / 1e9, gemm_ms),
        copy_gb_per_s=_per_ms(record.probes.copy_bytes / 1e6, median_of(record.probes.copy_ms))
        if record.probes
        else None,
        samples=len(times.fwd_bwd_ms),
        rounds=len(set(times.round)),
        fwd_peak_bytes=_memory(record.memory, "fwd_peak_bytes"),
        bwd_peak_bytes=_memory(record.memory, "bwd_peak_bytes"),
        fwd_bwd_peak_bytes=peak,
        retained_bytes=_memory(record.memory, "retained_bytes"),
        gradient_floor_bytes=record.gradient_floor_bytes,
        fwd_bwd_peak_to_floor=peak / record.gradient_floor_bytes if peak is not None else None,
        max_excess=record.max_excess,
        loss_error=_error(record.agreement, "loss_error"),
        loss_limit=_error(record.agreement, "loss_limit"),
        grad_input_error=_error(record.agreement, "grad_input_error"),
        grad_weight_error=_error(record.agreement, "grad_weight_error"),
        grad_bias_error=_error(record.agreement, "grad_bias_error"),
        grad_input_excess=_error(record.agreement, "grad_input_excess"),
        grad_weight_excess=_error(record.agreement, "grad_weight_excess"),
        grad_bias_excess=_error(record.agreement, "grad_bias_excess"),
        grad_input_row_error_p99=_error(record.agreement, "grad_input_row_error_p99"),
        grad_weight_row_error_p99=_error(record.agreement, "grad_weight_row_error_p99"),
        sampled_rows=record.agreement.sampled_rows if record.agreement else None,
        diagnostics=_nested(record.agreement.diagnostics if record.agreement else None),
        checks=_nested(record.agreement.checks if record.agreement else None),
        figures=record.agreement.figures if record.agreement else {},
        first_call_s=times.first_call_s,
        settle_s=times.settle_s,
        source_sha256=record.source_sha256,
        commit=record.provenance.commit,
        started=record.provenance.started,
        device=record.provenance.device,
        device_name=record.provenance.device_name,
    )


def median_of(samples: list[float]) -> float | None:
    """The median of raw samples; None if there are none."""
    return median(samples) if samples else None


@dataclass(frozen=True)
class _Ends:
    """An interval that may not be there."""

    middle: float | None = None
    low: float | None = None
    high: float | None = None

    @staticmethod
    def of(interval: Interval | None) -> _Ends:
        return _Ends() if interval is None else _Ends(interval.estimate, interval.low, interval.high)


def _floors(record: Record) -> Floors:
    """Of its fwd+bwd, on the GPU that its environment describes."""
    gpu = record.provenance.environment.get("gpu")
    return time_floors(record.case, gpu if isinstance(gpu, dict) else {}, record.input_statistics)["fwd_bwd_ms"]


def _per_ms(amount: float | None, time_ms: float | None) -> float | None:
    return amount / time_ms if amount is not None and time_ms else None


def _nested(model: BaseModel | None) -> dict[str, JsonValue]:
    return model.model_dump(mode="json") if model is not None else {}


def _memory(memory: Memory | None, name: str) -> int | None:
    return getattr(memory, name) if memory is not None else None


def _error(agreement: Agreement | None, name: str) -> float | None:
    """An error, or None where it was not computed or is no number: strict JSON knows no NaN."""
    value: float | None = getattr(agreement, name) if agreement is not None else None
    return value if value is not None and math.isfinite(value) else None
