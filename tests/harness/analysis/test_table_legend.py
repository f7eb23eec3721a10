"""What stands under a table: the GEMM, settling, wide intervals, footnotes of rows that never ran; tables of a CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.analysis.tables import markdown_report
from harness.record import Provenance, Record, Times

MakeRecord = Callable[..., Record]


@pytest.fixture
def cpu(make_record: MakeRecord) -> Provenance:
    return make_record().provenance.model_copy(update={"device": "cpu", "device_name": "CPU, 2 cores"})


def times(record: Record, **changes: object) -> Times:
    assert record.times is not None
    return record.times.model_copy(update=changes)


def line(report: str, begin: str) -> str | None:
    """The only line under the tables that begins so; None if there is none."""
    found = [text for text in report.splitlines() if text.startswith(f"- {begin}")]
    assert len(found) <= 1
    return found[0] if found else None


def test_the_gemm_on_a_gpu_is_bfloat16_whatever_the_case(make_record: MakeRecord, cpu: Provenance) -> None:
    assert "in bfloat16 by cuBLAS" in (line(markdown_report([make_record(dtype="float32")]), "One GEMM") or "")
    on_cpu = markdown_report([make_record(dtype="float32", provenance=cpu)])
    assert "in float32 by torch on the CPU" in (line(on_cpu, "One GEMM") or "")


def test_times_on_a_cpu_are_not_ranked(make_record: MakeRecord, cpu: Provenance) -> None:
    rows = [
        make_record(name, inputs=inputs, provenance=cpu, mib=mib)
        for inputs in ("zipf-weak", "zipf-strong")
        for name, mib in (("baseline", None), ("liger", (1, 2, 3)))
    ]
    report = markdown_report(rows)
    assert "**" not in report
    assert "Overview" not in report
    table = [text.split("|") for text in report.splitlines() if text.startswith("| liger")]
    assert [(cells[7].strip(), cells[8].strip()) for cells in table] == [("64.5", "—")] * 2  # ms, and time in GEMMs
    assert report.count("- Times on a CPU are for orientation only.") == 2
    assert "for orientation" not in markdown_report([make_record()])
    assert "for orientation" not in markdown_report([make_record(provenance=cpu, interpreted=True, ms=None)])


def test_settling_is_shown_apart_for_rows_that_have_it(make_record: MakeRecord) -> None:
    compiled = make_record("torch-compile")
    report = markdown_report(
        [
            make_record("baseline", times=times(compiled, settle_s=0.43, first_call_s=0.2)),
            make_record("torch-compile", times=times(compiled, settle_s=21.2, first_call_s=14.4)),
            make_record("killed", "timeout", times=times(compiled, settle_s=None, first_call_s=None)),
            make_record("interpreted", interpreted=True, times=Times(settle_s=9.0, first_call_s=8.0)),
            make_record("cce", "unsupported"),
        ]
    )
    assert line(report, "Settled") == (
        "- Settled in (first call in parentheses): baseline 0.4 s (0.2 s), torch-compile 21 s (14 s)."
    )
    assert line(markdown_report([make_record("cce", "unavailable")]), "Settled") is None
    assert line(markdown_report([make_record(mib=None, gemm_ms=None, times=Times(settle_s=1.0))]), "Settled") is None


def test_blocks_settle_apart(make_record: MakeRecord) -> None:
    report = markdown_report([make_record(label_smoothing=beta) for beta in (0.0, 0.1)])
    words = "at β = 0.1 baseline 2.5 s (1.5 s); at β = 0 baseline 2.5 s (1.5 s)."
    assert line(report, "Settled") == f"- Settled in (first call in parentheses): {words}"


def test_wide_intervals_are_named(make_record: MakeRecord, cpu: Provenance) -> None:
    spread = times(make_record(), fwd_bwd_ms=[100.0, 101.8, 98.2])
    rows = [make_record("torch-compile", times=spread, label_smoothing=0.1), make_record("baseline")]
    report = markdown_report(rows)
    assert line(report, "Interval") == "- Interval of the median wider than 2 %: at β = 0.1 torch-compile 3.6 %."
    assert line(markdown_report(rows[1:]), "Interval") is None
    assert line(markdown_report([make_record(times=spread, provenance=cpu)]), "Interval") is None  # all are, there


def test_that_a_row_which_never_ran_was_expected_is_no_news(make_record: MakeRecord) -> None:
    expected = (["unsupported", "unavailable"], "no softcap upstream")
    for status in expected[0]:
        report = markdown_report([make_record("cce", status, reason="CCE has none", expected=expected)])
        assert line(report, "¹") == "- ¹ CCE has none"
