"""Times that no GPU can reach."""

from __future__ import annotations

import pytest

from harness.case import Case
from harness.floor import below_floor, time_floors_ms

CASE = Case(tokens=8192, hidden_size=2304, vocab_size=256000)
H200 = {"compute_capability": [9, 0], "max_sm_clock_mhz": 1980, "multiprocessors": 132}


def test_an_h200_needs_nine_ms_for_the_gemma2_logits() -> None:
    floors = time_floors_ms(CASE, H200)
    assert floors["fwd_no_grad_ms"] == pytest.approx(9.03, abs=0.01)  # cuBLAS takes 12.2
    assert floors["fwd_bwd_ms"] == pytest.approx(27.08, abs=0.01)


@pytest.mark.parametrize("gpu", [{}, {**H200, "compute_capability": [7, 5]}, {**H200, "max_sm_clock_mhz": None}])
def test_an_unknown_gpu_has_no_floor(gpu: dict[str, object]) -> None:
    assert time_floors_ms(CASE, gpu) == {}


def test_only_what_is_below_is_impossible() -> None:
    floors = time_floors_ms(CASE, H200)
    assert below_floor({"fwd_no_grad_ms": [12.0] * 5, "fwd_bwd_ms": [40.0] * 5}, floors) is None
    assert below_floor({}, floors) is None
    found = below_floor({"fwd_no_grad_ms": [12.0] * 5, "fwd_bwd_ms": [20.0, 26.0, 90.0]}, floors)
    assert found == ("fwd_bwd_ms 26 is below 27.1, the time of its 3 products at the GPU's peak rate and highest clock")
