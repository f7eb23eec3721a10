"""The markdown report: what `run` prints when it ends, and what `report` writes."""

from __future__ import annotations

from collections.abc import Sequence

from harness.analysis.grid import agreement_tables, is_agreement_only, summary_table
from harness.analysis.heading import heading
from harness.analysis.section import by_setting, section
from harness.record import Record


def markdown_report(records: Sequence[Record]) -> str:
    """All records as markdown: a head, then a section per setting, or the compact layout of an agreement-only run.

    Sections, rows and footnotes are in the order of the records.
    """
    if not records:
        return "No records yet.\n"
    lines = [*heading(records), ""]
    if is_agreement_only(records):
        lines += agreement_tables(records)
    else:
        settings = by_setting(records)
        if len(settings) > 1 and any(record.gemm_ms for record in records):
            lines += ["## Overview: fwd+bwd time in GEMMs", "", summary_table(records), ""]
        for group in settings.values():
            lines += section(group)
    return "\n".join(lines).rstrip("\n") + "\n"
