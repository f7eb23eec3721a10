"""The markdown report: what `run` prints when it ends, and what `report` writes."""

from __future__ import annotations

from collections.abc import Sequence

from harness.analysis.grid import agreement_tables, is_agreement_only, summary_table
from harness.analysis.heading import heading
from harness.analysis.memory_claims import growth_section, growths
from harness.analysis.rows import Rows
from harness.analysis.section import by_setting, section
from harness.record import Record


def markdown_report(records: Sequence[Record], coverage: Sequence[str] = ()) -> str:
    """All records as markdown: a head, then a section per setting, or the compact layout of an agreement-only run.

    Sections, rows and footnotes are in the order of the records, `coverage` as in `heading`. No newline at the end.
    """
    if not records:
        return "\n".join(["No records yet.", "", *(f"- {line}" for line in coverage)]).rstrip("\n")
    lines = [*heading(records, coverage), ""]
    if is_agreement_only(records):
        lines += agreement_tables(records)
    else:
        settings, rows = by_setting(records), Rows(records)
        if len(settings) > 1 and any(row.fwd_bwd_gemms for row in rows):
            lines += ["## Overview: fwd+bwd time in GEMMs", "", summary_table(records, rows), ""]
        fitted = growths(records)
        for group in settings.values():
            lines += section(group, rows, fitted)
        lines += growth_section(records)
    return "\n".join(lines).rstrip("\n")
