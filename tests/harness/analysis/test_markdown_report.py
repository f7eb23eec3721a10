"""The report in the paper's layout: blocks, ranking, footnotes, marks, and one whole report to read."""

from __future__ import annotations

import textwrap
from collections.abc import Callable

import pytest

from harness.analysis.section import HEADERS
from harness.analysis.tables import markdown_report
from harness.record import Record

MakeRecord = Callable[..., Record]


def cells(report: str, implementation: str) -> list[list[str]]:
    """The table rows of an implementation, cell by cell."""
    rows = [line.split("|")[1:-1] for line in report.splitlines() if line.startswith("|")]
    stripped = [[cell.strip() for cell in row] for row in rows]
    return [row for row in stripped if row[0].removesuffix(" †") == implementation]


def column(report: str, implementation: str, name: str) -> list[str]:
    header = next(line for line in report.splitlines() if line.startswith("| implementation"))
    position = [cell.strip() for cell in header.split("|")[1:-1]].index(name)
    return [row[position] for row in cells(report, implementation)]


def test_a_whole_report(make_record: MakeRecord) -> None:
    small = {"tokens": 1024, "hidden_size": 512, "vocab_size": 32000, "gemm_ms": 0.05}
    report = markdown_report(
        [
            make_record("lower-bound", analytic=True, ms=None, error=None, mib=(4 / 2**20, 32, 32), **small),
            make_record("baseline", ms=(0.25, 0.5), mib=(96, 64, 128.5), **small),
            make_record(
                "cce",
                "disagrees",
                ms=(0.125, 0.125),
                mib=(0.09, 33, 33),
                error=(0.26, 9.2e-3),
                excess=(70.3, 3.07),
                reason="dE excess 70.3 is over 4",
                expected=(["disagrees"], "the filter loses the tail"),
                **small,
            ),
        ]
    )
    # stretches of blanks and dashes only align the columns: fold them, so that the expectation can be read
    folded = "\n".join(" ".join(line.split()) for line in report.splitlines() if not line.startswith("|:"))
    assert folded == textwrap.dedent(
        """\
        # gemma2 on NVIDIA H200

        - measured 2026-03-04 05:06 UTC, commit 0123456789
        - torch 2.13.0, triton 3.7.0, python 3.11.7, liger-kernel 0.8.5
        - 1 case: 1 ok of 2 (1 disagrees)
        - every row that failed was expected to, see its footnote

        Unless a heading names it: no softcap, no ignored rows, reduction mean, no linear bias, seed 0. N tokens, \
D hidden size, V vocabulary size, β label smoothing; E the input, C the classifier.

        ## N 1024, D 512, V 32000, bfloat16, zipf-medium

        | implementation | fwd MiB | fwd ms | bwd MiB | bwd ms | fwd+bwd MiB | fwd+bwd ms | 95 % | time in GEMMs | \
to reference | of floor | peak / floor | dE error | dC error | dE / dC excess | no-grad fwd ms | status |
        | lower-bound | <0.001 | — | 32.0 | — | 32.0 | — | — | — | — | — | 0.99 | — | — | — | — | computed |
        | *Smoothing β = 0* | | | | | | | | | | | | | | | | |
        | baseline | 96.0 | 0.250 | 64.0 | 0.500 | **128** | **0.750** | — | 15.0 | 1 | — | 3.98 | 3.7e-03 | \
3.0e-03 | 1.00 / 1.00 | 0.225 | ok |
        | cce | 0.09 | (0.125) | 33.0 | (0.125) | 33.0 | (0.250) | — | (5.00) | — | — | 1.02 | 2.6e-01 | \
9.2e-03 | 70.3 / 3.07 | (0.113) | disagrees ¹ |

        - dE and dC excess must be ≤ 4; the floor, the gradients themselves, is 32.2 MiB.
        - One GEMM, 1024 x 512 x 32000 in bfloat16 by cuBLAS: median 0.050 ms, 671 TFLOP/s.
        - (time) of a row that is not ok; it is not ranked.
        - No 95 % interval, for fewer than 6 rounds: baseline, cce.
        - Settled in (first call in parentheses): baseline 2.5 s (1.5 s), cce 2.5 s (1.5 s).
        - ¹ dE excess 70.3 is over 4; expected: the filter loses the tail"""
    )


def test_blocks_come_largest_smoothing_first_whatever_the_order_of_the_records(make_record: MakeRecord) -> None:
    report = markdown_report([make_record(label_smoothing=beta) for beta in (0.0, 0.5, 0.1)])
    titles = [line.split("*")[1] for line in report.splitlines() if line.startswith("| *Smoothing")]
    assert titles == ["Smoothing β > 0: β = 0.5", "Smoothing β > 0: β = 0.1", "Smoothing β = 0"]
    assert report.count("\n## ") == 1


def test_rows_keep_the_order_of_the_suite_in_every_block(make_record: MakeRecord) -> None:
    first = [make_record(name) for name in ("liger", "baseline", "cce")]
    second = [make_record(name, label_smoothing=0.1) for name in ("cce", "liger", "baseline")]  # a resumed run's order
    report = markdown_report([*first, *second])
    names = [line.split("|")[1].strip() for line in report.splitlines() if line.startswith(("| l", "| b", "| c"))]
    assert names == ["liger", "baseline", "cce"] * 2


def test_the_lower_bound_stands_once_on_top(make_record: MakeRecord) -> None:
    bound = {"analytic": True, "ms": None, "error": None, "mib": (0, 1161, 1161), "gemm_ms": None}
    report = markdown_report(
        [make_record(name, label_smoothing=b, **extra)
         for b in (0.0, 0.1) for name, extra in (("baseline", {}), ("lower-bound", bound))]
    )  # fmt: skip
    assert len(cells(report, "lower-bound")) == 1
    assert report.index("| lower-bound") < report.index("| *Smoothing β > 0")
    assert column(report, "lower-bound", "peak / floor") == ["1.00"]
    assert column(report, "lower-bound", "status") == ["computed"]
    assert "2 cases: 2 ok of 2" in report


@pytest.mark.parametrize(
    "axis",
    [
        {"tokens": 4096},
        {"dtype": "float32"},
        {"softcap": 30.0},
        {"inputs": "zipf-weak"},
        {"inputs": {"kind": "gaussian", "std": 2.0}},
        {"ignored_fraction": 0.5},
        {"reduction": "sum"},
        {"linear_bias": True},
        {"seed": 3},
    ],
    ids=lambda axis: next(iter(axis)),
)
def test_every_other_axis_makes_a_section_of_its_own(axis: dict[str, object], make_record: MakeRecord) -> None:
    report = markdown_report([make_record(), make_record(**axis)])
    headings = [line for line in report.splitlines() if line.startswith("## N ")]
    assert len(headings) == len(set(headings)) == 2
    assert "## Overview: fwd+bwd time in GEMMs" in report


def test_only_ok_rows_are_ranked(make_record: MakeRecord) -> None:
    report = markdown_report(
        [
            make_record("lower-bound", analytic=True, ms=None, error=None, mib=(0, 1161, 1161)),
            make_record("cce", "disagrees", ms=(5.0, 5.0), mib=(1, 1162, 1163)),
            make_record("cheat", "impossible", ms=(0.1, 0.1), mib=(1, 1162, 1163)),
            make_record("liger", ms=(100.0, 1.0), mib=(1, 1161, 1224), grads_in_forward=True),
            make_record("compiled", ms=(20.0, 30.0), mib=(4000, 4000, 5161)),
            make_record("baseline", ms=(27.6, 36.9), mib=(24000, 16000, 28000)),
        ]
    )
    assert column(report, "compiled", "fwd+bwd ms") == ["**50.0**"]
    assert column(report, "liger", "fwd+bwd MiB") == ["**1224**"]
    assert column(report, "cheat", "fwd+bwd ms") == ["(0.200)"]
    assert column(report, "cce", "time in GEMMs") == ["(0.81)"]
    assert column(report, "cce", "fwd+bwd MiB") == ["1163"]
    assert report.count("**") == 2 * 2 + 2  # two best cells, and the head's line on what nobody expected


def test_each_block_ranks_its_own_rows_and_ties_share(make_record: MakeRecord) -> None:
    blocks = {0.1: (19.0, 10.0), 0.0: (10.0, 10.0)}
    rows = [make_record(name, label_smoothing=b, ms=ms) for b, ms in blocks.items() for name in ("a", "b")]
    report = markdown_report(rows)
    assert column(report, "a", "fwd+bwd ms") == column(report, "b", "fwd+bwd ms") == ["**29.0**", "**20.0**"]


def test_rows_that_never_ran_show_dashes_and_share_their_footnote(make_record: MakeRecord) -> None:
    report = markdown_report(
        [
            make_record("cce", "unsupported", reason="CCE has no label smoothing"),
            make_record("cce-no-filter", "unsupported", reason="CCE has no\nlabel smoothing."),
            make_record("liger", "unavailable", reason="not installed: `pip install liger-kernel`"),
        ]
    )
    assert cells(report, "cce") == [["cce", *["—"] * (len(HEADERS) - 2), "unsupported ¹"]]
    assert column(report, "cce-no-filter", "status") == ["unsupported ¹"]
    assert column(report, "liger", "status") == ["unavailable ²"]
    assert report.rstrip().endswith("- ¹ CCE has no label smoothing\n- ² not installed: `pip install liger-kernel`")
    assert "not expected" not in report


@pytest.mark.parametrize("status", ["out_of_memory", "timeout", "crashed"])
def test_a_failure_shows_what_it_still_measured_and_why_it_failed(status: str, make_record: MakeRecord) -> None:
    mine = make_record("mine", status, error=None, reason="<module> __call__ * died")
    report = markdown_report([make_record(), mine])
    assert column(report, "mine", "fwd+bwd ms") == ["(64.5)"]
    assert column(report, "mine", "dE error") == ["—"]
    assert column(report, "mine", "status") == [f"{status.replace('_', ' ')} ¹"]
    assert r"- ¹ \<module> \_\_call\_\_ \* died" in report  # markdown would swallow the tag and embolden the call
    assert "**not ok and not expected by the suite: mine (1)**" in report


def test_expectations_are_told_from_surprises(make_record: MakeRecord) -> None:
    def row(name: str, status: str, expected: list[str], **changes: str) -> Record:
        return make_record(name, status, expected=(expected, "known upstream"), **changes)

    report = markdown_report(
        [
            row("foreseen", "crashed", ["crashed"], reason="signal 11"),
            row("not-run", "unsupported", ["unsupported"], reason="known upstream"),
            row("worse", "crashed", ["disagrees"], reason="signal 6"),
            row("better", "ok", ["disagrees", "crashed"]),
            row("anything", "ok", ["ok", "crashed"]),
        ]
    )
    assert [line for line in report.splitlines() if line.startswith(("- ¹", "- ²", "- ³", "- ⁴"))] == [
        "- ¹ signal 11; expected: known upstream",
        "- ² known upstream",
        "- ³ signal 6; not expected, the suite expects disagrees: known upstream",
        "- ⁴ ok, though the suite expects disagrees or crashed: known upstream",
    ]
    assert column(report, "anything", "status") == ["ok"]
    assert "**not ok and not expected by the suite: worse (1)**" in report


def test_a_long_traceback_is_cut(make_record: MakeRecord) -> None:
    report = markdown_report([make_record("mine", "crashed", reason="frame\n" * 500)])
    note = next(line for line in report.splitlines() if line.startswith("- ¹"))
    assert note.endswith("…")
    assert len(note) < 420


def test_interpreted_rows_show_agreement_and_a_footnote_for_their_time(make_record: MakeRecord) -> None:
    cpu = make_record().provenance.model_copy(update={"device": "cpu", "device_name": "a CPU"})
    report = markdown_report(
        [
            make_record("baseline", mib=None, provenance=cpu),
            make_record("liger", ms=None, mib=None, interpreted=True, grads_in_forward=True, provenance=cpu),
            make_record("cce", "unavailable", interpreted=True, provenance=cpu),
        ]
    )
    assert cells(report, "liger")[0][0] == "liger †"
    assert column(report, "liger", "fwd+bwd ms") == ["— ¹"]
    assert column(report, "liger", "dE / dC excess") == ["1.00 / 1.00"]
    assert column(report, "cce", "fwd+bwd ms") == ["—"]
    assert column(report, "baseline", "fwd+bwd MiB") == ["—"]
    assert "¹ ran in the Triton interpreter" in report
    assert "† computes gradients in the forward" in report
    assert "by torch on the CPU" in report


def test_gemms_are_told_apart_where_the_blocks_measured_different_ones(make_record: MakeRecord) -> None:
    report = markdown_report([make_record(label_smoothing=0.1, gemm_ms=12.3), make_record(gemm_ms=13.0)])
    assert "median 12.3 ms, 786 TFLOP/s (β = 0.1); median 13.0 ms, 743 TFLOP/s (β = 0)." in report


def test_overview_ranks_each_case(make_record: MakeRecord) -> None:
    report = markdown_report(
        [
            make_record("baseline", inputs="zipf-weak"),
            make_record("cce", "disagrees", inputs="zipf-weak", ms=(12.3, 12.3)),
            make_record("baseline", ms=(12.3, 12.3)),
            make_record("cce", "timeout", ms=None, mib=None, error=None),
        ]
    )
    overview = report.split("## Overview")[1].split("## N")[0].splitlines()
    rows = [[cell.strip() for cell in line.split("|")[2:-1]] for line in overview if line.startswith("| 8192")]
    assert rows == [["zipf-weak", "**5.24**", "(2.00)"], ["zipf-medium", "**2.00**", "timeout"]]


def test_a_share_of_what_is_kept_is_named_beside_the_time_that_has_it(make_record: MakeRecord) -> None:
    ours = make_record("ours", ms=(1.0, 2.0))
    agreement = ours.agreement.model_copy(update={"figures": {"amortised_ms": 0.25, "amortised_calls": 100.0}})
    report = markdown_report([make_record("baseline"), ours.model_copy(update={"agreement": agreement})])
    assert "**3.25** ¹" in cells(report, "ours")[0]
    assert "¹ fwd+bwd includes 0.250 ms a call: 25.0 ms of work are kept over 100 calls" in report
    assert not any("¹" in cell for cell in cells(report, "baseline")[0])
