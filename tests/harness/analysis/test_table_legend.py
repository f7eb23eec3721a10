"""What stands under a table: the GEMM, settling, wide intervals, footnotes of rows that never ran; tables of a CPU."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from harness.analysis.statistics.error_rates import simulated_case
from harness.analysis.statistics.simulation import LIKE_H200, NOISE_AND_DRIFT, QUIET, THROTTLED, NoiseModel
from harness.analysis.tables import markdown_report
from harness.record import Probes, Provenance, Record, Times

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


def simulated(make_record: MakeRecord, model: NoiseModel, rounds: int, seed: int = 0, **changes: Any) -> list[Record]:
    """baseline, measured twice, and liger, on the simulated clock."""
    run = simulated_case(model, rounds, seed)
    gemm_ms = run.turns["gemm"].values.ravel().tolist()
    rows = {"baseline": run.times("base"), "liger": run.times("head")}
    records = [make_record(name, times=times, **changes) for name, times in rows.items()]
    again = run.times("base").model_copy(update={"fwd_bwd_ms": (1.002 * run.turns["base"].values).ravel().tolist()})
    found = [record.model_copy(update={"gemm_ms": gemm_ms}) for record in records]
    return [found[0].model_copy(update={"again": again}), found[1]]


def test_wide_intervals_are_named(make_record: MakeRecord, cpu: Provenance) -> None:
    rows = [
        *simulated(make_record, LIKE_H200, 10, label_smoothing=0.1),
        *simulated(make_record, QUIET, 20),
    ]
    report = markdown_report(rows)
    found = line(report, "95 % interval") or ""
    head = "- 95 % interval of the ratio to the reference (its own: of the time) wider than 2 %: "
    assert re.fullmatch(re.escape(head) + r"at β = 0.1 baseline [\d.]+ %, liger [\d.]+ %\.", found)
    assert line(markdown_report(rows[2:]), "95 % interval") is None
    on_cpu = [row.model_copy(update={"provenance": cpu}) for row in rows]
    assert line(markdown_report(on_cpu), "95 % interval") is None  # all are, there


def test_too_few_rounds_have_no_interval_and_say_so(make_record: MakeRecord) -> None:
    report = markdown_report([*simulated(make_record, QUIET, 5), make_record("cce", "unsupported")])
    assert line(report, "No 95 %") == "- No 95 % interval, for fewer than 6 rounds: baseline, liger."
    assert line(markdown_report(simulated(make_record, QUIET, 6)), "No 95 %") is None


def test_the_noise_of_a_run_is_its_a_a(make_record: MakeRecord) -> None:
    report = markdown_report(simulated(make_record, QUIET, 12))
    assert line(report, "A/A") == (
        "- A/A, a row over itself in the same rounds: "
        "baseline 1.002 [1.002-1.002] in 12 rounds, so less than 0.2 % is noise."
    )
    assert line(markdown_report([make_record()]), "A/A") is None


@pytest.mark.parametrize(
    ("model", "head", "words"),
    [
        (
            NOISE_AND_DRIFT,
            "Drift",
            r"baseline (wandered|drifted) .*, liger (wandered|drifted) .*; the GEMM wandered .*\.",
        ),
        (replace(QUIET, order_bias=0.05), "Order", r"liger [\d.]+ % slower late in a round than early\."),
        (THROTTLED, "Throttling", r"baseline throttled \(hw thermal\) in .*, liger throttled .*\."),
        (replace(QUIET, bimodal_gap=0.06), "Two clocks", r"baseline two groups .* in the slower one.*"),
    ],
)
def test_what_went_wrong_while_rows_were_timed(
    make_record: MakeRecord, model: NoiseModel, head: str, words: str
) -> None:
    report = markdown_report(simulated(make_record, model, 30, seed=1))
    assert re.search(words, line(report, head) or ""), line(report, head)
    assert line(markdown_report(simulated(make_record, QUIET, 30, seed=1)), head) is None


def test_what_is_faster_than_its_products_is_named(make_record: MakeRecord, cpu: Provenance) -> None:
    rows = [
        make_record("skips", ms=(14.0, 20.9), gemm_ms=12.3),  # without grad 12.6 ms
        make_record("writes-nothing", ms=(12.3, 40.0), gemm_ms=12.3),
        make_record("baseline", gemm_ms=12.3),
        make_record("cce", "unsupported"),
    ]
    report = markdown_report(rows)
    assert line(report, "Faster") == (
        "- Faster than cuBLAS's products, for work left out or logits that are not written: "
        "skips fwd+bwd 2.84 of 3 GEMMs, writes-nothing no-grad fwd 0.90 of 1 GEMM."
    )
    assert line(markdown_report(rows[2:]), "Faster") is None
    half = {"ignored_fraction": 0.5, "gemm_ms": 12.3, "input_statistics": {"counted_rows": 4096}}
    packed = markdown_report(
        [make_record("packs", ms=(7.0, 12.0), **half), make_record("skips", ms=(6.9, 9.0), **half)]
    )
    assert (line(packed, "Faster") or "").endswith("not written: skips fwd+bwd 1.29 of 1.5 GEMMs.")
    assert line(markdown_report([row.model_copy(update={"provenance": cpu}) for row in rows]), "Faster") is None


def test_the_copy_beside_the_gemm(make_record: MakeRecord, cpu: Provenance) -> None:
    probes = Probes(copy_ms=[0.25, 0.26, 0.24], copy_bytes=10**9)
    report = markdown_report([make_record(probes=probes)])
    assert line(report, "A copy") == "- A copy within the GPU's memory in the same rounds: median 4000 GB/s."
    assert line(markdown_report([make_record(probes=probes, provenance=cpu)]), "A copy") is None


def test_that_a_row_which_never_ran_was_expected_is_no_news(make_record: MakeRecord) -> None:
    expected = (["unsupported", "unavailable"], "no softcap upstream")
    for status in expected[0]:
        report = markdown_report([make_record("cce", status, reason="CCE has none", expected=expected)])
        assert line(report, "¹") == "- ¹ CCE has none"
