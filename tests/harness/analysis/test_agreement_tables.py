"""The compact layout of runs that measure agreement only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.analysis.grid import is_agreement_only
from harness.analysis.tables import markdown_report
from harness.record import Record

MakeRecord = Callable[..., Record]
AGREEMENT: dict[str, Any] = {"ms": None, "mib": None, "gemm_ms": None}


def table(report: str, heading: str) -> list[list[str]]:
    """The rows of the table under a heading, cell by cell, without the rule under its head."""
    lines = report.split(f"## {heading}\n")[1].split("\n## ", maxsplit=1)[0].splitlines()
    rows = [line for line in lines if line.startswith("|") and not line.startswith("|:")]
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]


def test_cases_are_rows_and_implementations_columns(make_record: MakeRecord) -> None:
    shape = {"tokens": 130, "hidden_size": 65, "vocab_size": 1001} | AGREEMENT
    bound = {"analytic": True, "error": None} | shape
    report = markdown_report(
        [
            make_record("lower-bound", **(bound | {"mib": (0, 1, 1)})),
            make_record("baseline", excess=(1.0, 0.98), **shape),
            make_record("liger", excess=(1.5, None), interpreted=True, grads_in_forward=True, **shape),
            make_record("cce", "unsupported", reason="no odd sizes", interpreted=True, **shape),
            make_record("baseline", softcap=2.0, ignored_fraction=1.0, excess=(None, None), **shape),
            make_record("liger", "disagrees", softcap=2.0, ignored_fraction=1.0, excess=(1e5, 3.0), **shape),
            make_record("cce", "crashed", softcap=2.0, ignored_fraction=1.0, error=None, reason="signal 11", **shape),
        ]
    )
    assert table(report, "bfloat16, zipf-medium") == [
        ["N x D x V", "softcap", "ignored", "baseline", "liger", "cce"],
        ["130 x 65 x 1001", "—", "0", "1.00 / 0.98", "1.50 / —", "unsupported ¹"],
        ["130 x 65 x 1001", "2", "1", "ok", "disagrees (1.0e+05 / 3.00) ²", "crashed ³"],
    ]
    assert "3 ok of 6 (1 disagrees, 1 crashed, 1 unsupported). A cell is the excess of dE / of dC" in report
    assert "both must be ≤ 4." in report
    assert "In the Triton interpreter: liger." in report
    assert report.rstrip().endswith("- ¹ no odd sizes\n- ² dE excess is over 4\n- ³ signal 11")
    assert "GEMM" not in report


def test_dtypes_and_inputs_have_tables_of_their_own_with_their_own_footnotes(make_record: MakeRecord) -> None:
    report = markdown_report(
        [
            make_record("cce", "unsupported", reason=f"not in {dtype}", dtype=dtype, inputs=inputs, **AGREEMENT)
            for dtype in ("bfloat16", "float32")
            for inputs in ("uniform", {"kind": "gaussian", "std": 3.0})
        ]
        + [make_record("baseline", inputs="uniform", label_smoothing=0.5, **AGREEMENT)]
    )
    headings = [line for line in report.splitlines() if line.startswith("## ")]
    assert headings == [
        "## bfloat16, uniform",
        "## bfloat16, gaussian (std 3)",
        "## float32, uniform",
        "## float32, gaussian (std 3)",
    ]
    assert report.count("- ¹ not in") == 4
    # a row that has no record yet is an empty cell
    assert table(report, "bfloat16, uniform")[1:] == [
        ["8192 x 2304 x 256000", "0", "unsupported ¹", ""],
        ["8192 x 2304 x 256000", "0.5", "", "1.00 / 1.00"],
    ]


def test_one_measured_row_asks_for_the_whole_layout(make_record: MakeRecord) -> None:
    compared = make_record(**AGREEMENT)
    bound = make_record("lower-bound", analytic=True, ms=None, error=None, gemm_ms=None)
    assert is_agreement_only([compared, bound])
    assert not is_agreement_only([compared, make_record("liger", mib=None)])
    assert not is_agreement_only([compared, make_record("liger", ms=None)])
    # a run in which everything failed was not about agreement
    assert not is_agreement_only([make_record("liger", "crashed", error=None, **AGREEMENT), bound])
