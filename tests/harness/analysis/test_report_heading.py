"""The head of the report: environments, versions, what is missing."""

from __future__ import annotations

from collections.abc import Callable

from harness.analysis.tables import markdown_report
from harness.record import Record, Times

MakeRecord = Callable[..., Record]


def test_the_head_lists_every_environment_and_tolerates_an_empty_one(make_record: MakeRecord) -> None:
    later = {"started": "2026-03-05T00:00:00Z", "commit": None, "environment": {"packages": None, "torch": None}}
    origin = make_record().provenance
    dirty = origin.model_copy(update={"dirty": True})
    report = markdown_report(
        [
            make_record("baseline", provenance=dirty),
            make_record("liger", provenance=origin.model_copy(update=later)),
            make_record("cce", label_smoothing=0.1),
        ]
    )
    assert "- measured 2026-03-04 05:06 UTC, commit 0123456789 with uncommitted changes\n" in report
    assert "- measured 2026-03-05 00:00 UTC, commit unknown\n" in report
    assert "incomplete: 3 rows not measured yet" in report


def test_versions_are_found_wherever_the_environment_names_them(make_record: MakeRecord) -> None:
    packages = {"liger-kernel": "0.8.5", "cut-cross-entropy": None, "torch": "2.13.0", "triton": "3.7.0"}
    environment = {"python": "3.11.7", "cuda": "13.0", "packages": packages, "gpu": {"driver": "570.86"}}
    provenance = make_record().provenance.model_copy(update={"environment": environment})
    report = markdown_report([make_record(provenance=provenance)])
    assert "- torch 2.13.0, triton 3.7.0, cuda 13.0, driver 570.86, python 3.11.7, liger-kernel 0.8.5\n" in report


def test_a_lead_in_is_named(make_record: MakeRecord) -> None:
    times = Times(fwd_no_grad_ms=[1.0], fwd_ms=[1.0], bwd_ms=[1.0], fwd_bwd_ms=[2.0], round=[0], lead_in_ms=80.0)
    words = "before every timed call 80 ms of the case's GEMM, untimed"
    assert f"- {words}\n" in markdown_report([make_record(times=times)])
    assert words not in markdown_report([make_record(times=times.model_copy(update={"lead_in_ms": 0.0}))])


def test_no_records_are_said_to_be_none() -> None:
    assert markdown_report([]) == "No records yet."


def traced(record: Record, **traces: list[int] | list[float]) -> Times:
    assert record.times is not None
    return record.times.model_copy(update=traces)


def test_the_head_tells_clocks_power_and_throttling(make_record: MakeRecord) -> None:
    cool = traced(
        make_record(), sm_clock_mhz=[1980, 1980, 1650], power_w=[450.0, 460.5, 470.0], throttle_reasons=[0] * 3
    )
    hot = traced(
        make_record(), sm_clock_mhz=[1290, 1500, 1600], power_w=[600.0, 698.6, 1.0], throttle_reasons=[4, 36, 5]
    )
    report = markdown_report([make_record("a", times=cool), make_record("b", times=hot), make_record("c", ms=None)])
    says = "SM clock 1290-1980 MHz (median 1625), power up to 699 W, throttled (bits: sw power cap, sw thermal) in 50 %"
    assert f"\n- GPU while timed: {says} of the samples\n" in report


def test_idling_is_not_throttling_and_an_unknown_bit_is_a_number(make_record: MakeRecord) -> None:
    def says(*bits: int) -> str:
        report = markdown_report([make_record(times=traced(make_record(), throttle_reasons=list(bits)))])
        return next(line for line in report.splitlines() if line.startswith("- GPU"))

    assert says(0, 0, 0) == "- GPU while timed: not throttled"
    assert says(1, 0, 0) == "- GPU while timed: not throttled, idle in 33.3 %"
    assert says(512, 512, 514) == (
        "- GPU while timed: throttled (bits: applications clocks, bit 512) in 100 % of the samples"
    )


def test_every_gpu_of_a_run_has_a_line_and_none_without_nvml(make_record: MakeRecord) -> None:
    other = make_record().provenance.model_copy(update={"device_name": "NVIDIA B200"})
    times = traced(make_record(), power_w=[500.0] * 3)
    report = markdown_report([make_record(times=times), make_record("liger", times=times, provenance=other)])
    assert "- NVIDIA H200 while timed: power up to 500 W\n- NVIDIA B200 while timed: power up to 500 W\n" in report
    assert "while timed" not in markdown_report([make_record()])
