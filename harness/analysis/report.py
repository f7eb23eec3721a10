"""A run's results in the format asked for, and the reports and pictures beside its records."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, assert_never

from harness.analysis.coverage import coverage
from harness.analysis.export import as_csv, as_json
from harness.analysis.frame import read_records
from harness.analysis.html import html_report
from harness.analysis.pictures.files import as_markdown, write_pictures, written_pictures
from harness.analysis.tables import markdown_report

Format = Literal["markdown", "csv", "json", "html"]
REPORT_FILE, HTML_FILE = "report.md", "report.html"


def render(run_dir: Path, format: Format) -> str:
    """The records of a run directory, or of a records.jsonl, as text without a newline at its end.

    Markdown and HTML show the pictures that `write_report` has left in the directory, if any.
    Raises as `read_records` does.
    """
    records = read_records(run_dir)
    match format:
        case "markdown":
            return _with_pictures(markdown_report(records, coverage(run_dir, records)), as_markdown(run_dir))
        case "csv":
            return as_csv(records)
        case "json":
            return as_json(records)
        case "html":
            drawn = {title: file.read_text(encoding="utf-8") for title, file in written_pictures(run_dir).items()}
            return html_report(records, coverage(run_dir, records), drawn)
        case _:
            assert_never(format)


def write_report(run_dir: Path) -> Path:
    """Writes pictures, report.html and report.md into a run directory, and returns the path of the last.

    The same records give the same bytes.
    """
    write_pictures(run_dir)
    _write(run_dir / HTML_FILE, render(run_dir, "html") + "\n")
    return _write(run_dir / REPORT_FILE, render(run_dir, "markdown") + "\n")


def _with_pictures(report: str, pictures: list[str]) -> str:
    """The report with its pictures after the head, before the tables."""
    head, mark, tables = report.partition("\n## ")
    return "\n".join([head, *pictures]) + mark + tables if pictures else report


def _write(report: Path, text: str) -> Path:
    unfinished = report.with_name(f".{report.name}.part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(report)  # a reader, or a killed process, never sees half a report
    return report
