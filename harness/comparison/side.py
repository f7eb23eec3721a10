"""One side of a comparison: what is known of a row, from a record or from a stored baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from harness.record import Agreement, Memory, Record, Status

# Peaks of torch's allocator, and what it keeps. Not the peak above what was live before the backward: that grows where
# less is retained. Not what NVML says of a shared device: that repeats to no byte.
MEMORY_COLUMNS: tuple[str, ...] = tuple(
    name
    for name in (
        "fwd_bwd_peak_bytes",
        "fwd_peak_bytes",
        "fwd_no_grad_peak_bytes",
        "retained_bytes",
        "leaked_bytes",
    )
    if name in Memory.model_fields
)
_EXCESSES = {"dE": "grad_input_excess", "dC": "grad_weight_excess", "db": "grad_bias_excess"}


@dataclass(frozen=True)
class Side:
    """A row on a case, as base or as head."""

    status: Status
    reason: str | None = None
    as_expected: bool = True  # ok, not offered, or foreseen by the suite
    time_ms: float | None = None  # median fwd+bwd
    memory: Mapping[str, int] = field(default_factory=dict)  # bytes, by MEMORY_COLUMNS; empty on a CPU
    excess: Mapping[str, float] = field(default_factory=dict)  # by gradient; without those that do not exist


def side_of(record: Record) -> Side:
    """A measured row."""
    samples = record.times.fwd_bwd_ms if record.times is not None else []
    return Side(
        status=record.status,
        reason=record.reason,
        as_expected=record.as_expected,
        time_ms=median(samples) if samples else None,
        memory=memory_of(record.memory),
        excess=excess_of(record.agreement),
    )


def memory_of(memory: Memory | None) -> dict[str, int]:
    """Bytes by column; without those that this machine or an older record does not have."""
    found = {} if memory is None else {name: getattr(memory, name) for name in MEMORY_COLUMNS}
    return {name: value for name, value in found.items() if value is not None}


def memory_words(column: str) -> str:
    """A column of Memory as a table calls it: `fwd bwd peak`."""
    return column.removesuffix("_bytes").replace("fwd_bwd", "fwd+bwd").replace("_", " ")


def excess_of(agreement: Agreement | None) -> dict[str, float]:
    """Excess by gradient; without those that do not exist."""
    found = {} if agreement is None else {name: getattr(agreement, column) for name, column in _EXCESSES.items()}
    return {name: value for name, value in found.items() if value is not None}
