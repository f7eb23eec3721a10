"""The head of the report: environments, versions, what is missing."""

from __future__ import annotations

from collections.abc import Callable

from harness.analysis.tables import markdown_report
from harness.record import Record

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


def test_no_records_are_said_to_be_none() -> None:
    assert markdown_report([]) == "No records yet.\n"
