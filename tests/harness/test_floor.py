"""Times that no GPU can reach."""

from __future__ import annotations

import pytest

from harness.case import Case
from harness.floor import Floors, below_floor, time_floors

CASE = Case(tokens=8192, hidden_size=2304, vocab_size=256000)
H200 = {
    "compute_capability": [9, 0],
    "max_sm_clock_mhz": 1980,
    "multiprocessors": 132,
    "max_memory_clock_mhz": 3201,
    "memory_bus_bits": 6144,
}


def test_an_h200_needs_nine_ms_for_the_gemma2_logits() -> None:
    floors = time_floors(CASE, H200, {})
    assert floors["fwd_no_grad_ms"].arithmetic_ms == pytest.approx(9.03, abs=0.01)  # cuBLAS takes 12.2
    assert floors["fwd_bwd_ms"].arithmetic_ms == pytest.approx(27.08, abs=0.01)


def test_an_h200_needs_half_a_ms_to_read_and_write_gemma2_s_head() -> None:
    floors = time_floors(CASE, H200, {})
    assert floors["fwd_no_grad_ms"].bytes_ms == pytest.approx(1.2174 / 4.917, abs=0.001)  # GB over TB/s
    assert floors["fwd_bwd_ms"].bytes_ms == pytest.approx(2 * 1.2174 / 4.917, abs=0.001)
    assert floors["fwd_bwd_ms"].higher_ms == floors["fwd_bwd_ms"].arithmetic_ms


@pytest.mark.parametrize(
    ("changes", "statistics", "share"),
    [
        ({"ignored_fraction": 0.5}, {}, 0.5),  # records from before the count
        ({"ignored_fraction": 0.5}, {"counted_rows": 4096}, 0.5),
        ({"inputs": {"kind": "file", "path": "x.safetensors"}}, {"counted_rows": 2048}, 0.25),  # ignored in the file
        ({"ignored_fraction": 1.0}, {"counted_rows": 0}, 0.0),
        ({}, {}, 1.0),
    ],
)
def test_ignored_tokens_cost_no_products(changes, statistics, share) -> None:
    """Who packs the tokens that count computes what there is to compute, in less time than all N would take."""
    case = Case.model_validate(CASE.model_dump() | changes)
    whole = time_floors(CASE, H200, {})
    for key, floor in time_floors(case, H200, statistics).items():
        assert floor.arithmetic_ms == pytest.approx(share * whole[key].arithmetic_ms)
        unread = (1 - share) * 8192 * 2304 * 2 if share else 2304 * (256000 + 8192) * 2
        assert floor.bytes_ms == pytest.approx(whole[key].bytes_ms - unread / 4.917e9, abs=1e-3)
    packed = {"fwd_bwd_ms": [0.6 * whole["fwd_bwd_ms"].arithmetic_ms]}
    possible = below_floor(packed, time_floors(case, H200, statistics)) is None
    assert possible == (share <= 0.5)


def test_what_may_still_be_in_the_cache_need_not_have_been_written() -> None:
    cached = time_floors(CASE, {**H200, "l2_bytes": 60 << 20}, {})["fwd_bwd_ms"].bytes_ms
    assert cached == pytest.approx((2 * 1.2174 - 0.0629) / 4.917, abs=0.001)
    small = Case(tokens=128, hidden_size=64, vocab_size=512)
    assert time_floors(small, {**H200, "l2_bytes": 60 << 20}, {})["fwd_bwd_ms"].bytes_ms == 0


def test_a_copy_that_is_faster_than_the_clocks_promise_lowers_the_floor() -> None:
    slow, fast = (time_floors(CASE, H200, {}, rate)["fwd_bwd_ms"].bytes_ms for rate in (4.2e12, 9.834e12))
    assert slow == time_floors(CASE, H200, {})["fwd_bwd_ms"].bytes_ms
    assert fast == pytest.approx(slow / 2, rel=1e-3)


@pytest.mark.parametrize(
    ("gpu", "known"),
    [
        ({}, (False, False)),
        ({**H200, "compute_capability": [7, 5]}, (False, True)),
        ({**H200, "max_sm_clock_mhz": None}, (False, True)),
        ({key: value for key, value in H200.items() if key != "memory_bus_bits"}, (True, False)),  # older records
    ],
)
def test_an_unknown_gpu_has_no_floor(gpu: dict[str, object], known: tuple[bool, bool]) -> None:
    for floor in time_floors(CASE, gpu, {}).values():
        assert (floor.arithmetic_ms is not None, floor.bytes_ms is not None) == known
        assert (floor.higher_ms is not None) == any(known)


def test_only_what_is_below_is_impossible() -> None:
    floors = time_floors(CASE, H200, {})
    assert below_floor({"fwd_no_grad_ms": [12.0] * 5, "fwd_bwd_ms": [40.0] * 5}, floors) is None
    assert below_floor({}, floors) is None
    assert below_floor({"fwd_bwd_ms": [1e-9]}, {"fwd_bwd_ms": Floors(None, None)}) is None
    found = below_floor({"fwd_no_grad_ms": [12.0] * 5, "fwd_bwd_ms": [20.0, 26.0, 90.0]}, floors)
    assert found == "fwd_bwd_ms 26 is below 27.1, the time of its products at the GPU's peak rate and highest clock"


def test_what_skips_products_still_has_to_read_and_write() -> None:
    floors = time_floors(CASE, H200, {})
    assert below_floor({"fwd_bwd_ms": [20.0]}, floors, skips_work=True) is None
    found = below_floor({"fwd_bwd_ms": [0.4]}, floors, skips_work=True)
    assert found == (
        "fwd_bwd_ms 0.4 is below 0.495, "
        "the time to read its inputs and write its results once at the memory's peak rate"
    )
