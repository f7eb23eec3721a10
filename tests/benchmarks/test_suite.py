"""`pytest --benchmark-only tests/benchmarks`: forward and backward of every cell of a suite; see docs/library.md."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from tests.benchmarks.cells import TIMER, Cell, Measured


def test_forward_and_backward(
    case_id: str, implementation: str, measured: dict[Cell, Measured], benchmark: Any
) -> None:
    record, row = measured[case_id, implementation].record, measured[case_id, implementation].row
    if not record.as_expected:
        pytest.fail(f"{record.status}: {record.reason}")
    if record.times is None or not record.times.fwd_bwd_ms:
        pytest.skip(record.reason or "no times: it runs in Triton's interpreter, or the suite asks for none")
    benchmark.extra_info.update(asdict(row))
    TIMER.replay(benchmark, record.times.fwd_bwd_ms)
