"""Synthetic records: every test states only what it is about, the rest is one plausible row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.case import Case
from harness.cost import gradient_floor_bytes
from harness.record import Agreement, Expectation, Memory, Provenance, Record, Status, Times

MakeRecord = Callable[..., Record]
MIB = 2**20

PROVENANCE = Provenance(
    commit="0123456789abcdef",
    dirty=False,
    argv=["run", "suites/gemma2.yaml"],
    started="2026-03-04T05:06:07Z",
    device="cuda",
    device_name="NVIDIA H200",
    environment={"torch": "2.13.0", "triton": "3.7.0", "python": "3.11.7", "packages": {"liger-kernel": "0.8.5"}},
)


@pytest.fixture
def make_record() -> MakeRecord:
    """A record of `implementation`; `ms` is (forward, backward), `mib` (forward, backward, fwd+bwd peak)."""

    def make(
        implementation: str = "baseline",
        status: str = "ok",
        ms: tuple[float, float] | None = (27.6, 36.9),
        mib: tuple[float, float, float] | None = (24000, 16000, 28000),
        error: tuple[float, float] | None = (3.7e-3, 3.0e-3),
        excess: tuple[float | None, float | None] = (1.0, 1.0),
        gemm_ms: float | None = 12.3,
        reason: str | None = None,
        expected: tuple[list[str], str] | None = None,
        **changes: Any,
    ) -> Record:
        fields = {name: changes.pop(name) for name in list(changes) if name in Case.model_fields}
        case = Case(**({"tokens": 8192, "hidden_size": 2304, "vocab_size": 256000} | fields))
        if status in ("unsupported", "unavailable"):
            ms = mib = error = None
        why = reason or {"ok": None, "disagrees": "dE excess is over 4"}.get(status, f"it is {status}")
        record = {
            "suite": "gemma2",
            "case_id": case.id,
            "case": case,
            "implementation": implementation,
            "status": status,
            "reason": why,
            "expected": Expectation(status=expected[0], reason=expected[1]) if expected else None,
            "times": _times(*ms) if ms else None,
            "memory": _memory(*mib) if mib else None,
            "agreement": _agreement(error, excess, status) if error else None,
            "reference": "baseline",
            "max_excess": 4.0,
            "gemm_ms": [gemm_ms * factor for factor in (1.02, 1.0, 0.99)] if gemm_ms else [],
            "gradient_floor_bytes": gradient_floor_bytes(case),
            "provenance": PROVENANCE,
        }
        return Record(**(record | changes))

    return make


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[[list[Record]], Path]:
    """Writes records as a run directory."""

    def write(records: list[Record]) -> Path:
        run = tmp_path / "run"
        run.mkdir()
        (run / "records.jsonl").write_text("".join(f"{record.model_dump_json()}\n" for record in records))
        return run

    return write


def _times(fwd: float, bwd: float) -> Times:
    spread = (1.009, 1.0, 0.999)  # the median, not the mean, is the number that was asked for
    return Times(
        fwd_no_grad_ms=[fwd * 0.9 * factor for factor in spread],
        fwd_ms=[fwd * factor for factor in spread],
        bwd_ms=[bwd * factor for factor in spread],
        fwd_bwd_ms=[(fwd + bwd) * factor for factor in spread],
        round=[0, 1, 2],
        first_call_s=1.5,
        settle_s=2.5,
    )


def _memory(fwd: float, bwd: float, both: float) -> Memory:
    return Memory(
        fwd_no_grad_peak_bytes=int(fwd * MIB),
        fwd_peak_bytes=int(fwd * MIB),
        bwd_peak_bytes=int(bwd * MIB),
        fwd_bwd_peak_bytes=int(both * MIB),
        retained_bytes=int(fwd * MIB),
    )


def _agreement(error: tuple[float, float], excess: tuple[float | None, float | None], status: str) -> Agreement:
    return Agreement(
        loss_error=1e-7,
        loss_limit=1e-5,
        grad_input_error=error[0],
        grad_weight_error=error[1],
        grad_input_excess=excess[0],
        grad_weight_excess=excess[1],
        failures=["dE excess"] if status == Status.DISAGREES else [],
    )
