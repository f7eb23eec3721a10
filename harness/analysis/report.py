"""A run's results in the format asked for, and the report.md beside its records."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, assert_never

from harness.analysis.coverage import coverage
from harness.analysis.export import as_csv, as_json
from harness.analysis.frame import read_records
from harness.analysis.tables import markdown_report

Format = Literal["markdown", "csv", "json"]
REPORT_FILE = "report.md"


def render(run_dir: Path, format: Format) -> str:
    """The records of a run directory, or of a records.jsonl, as text without a newline at its end.

    Raises as `read_records` does.
    """
    records = read_records(run_dir)
    match format:
        case "markdown":
            return markdown_report(records, coverage(run_dir, records))
        case "csv":
            return as_csv(records)
        case "json":
            return as_json(records)
        case _:
            assert_never(format)


def write_report(run_dir: Path) -> Path:
    """Writes the markdown report into a run directory and returns its path; the same records give the same bytes."""
    text = render(run_dir, "markdown") + "\n"
    report, unfinished = run_dir / REPORT_FILE, run_dir / f".{REPORT_FILE}.part"
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(report)  # a reader, or a killed process, never sees half a report
    return report
