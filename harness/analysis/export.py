"""Rows for other programs: a strict JSON array, and CSV with the same columns; no newline at the end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from harness.analysis.frame import to_frame
from harness.analysis.row import BOOLEAN_COLUMNS
from harness.analysis.rows import Rows
from harness.record import Record


def as_json(records: Sequence[Record]) -> str:
    """A JSON array with one object, on one line, per case and implementation; null where there is no number."""
    rows = Rows(records)
    lines = [json.dumps(asdict(rows.of(record)), ensure_ascii=False, allow_nan=False) for record in records]
    return "[" + ",".join(f"\n  {line}" for line in lines) + "\n]"


def as_csv(records: Sequence[Record]) -> str:
    """The same columns as CSV: empty where there is no number, nested values as JSON text."""
    frame = to_frame(records)
    for name in BOOLEAN_COLUMNS:
        frame[name] = [str(value).lower() for value in frame[name]]  # true and false, as in JSON
    return frame.to_csv(index=False, lineterminator="\n").removesuffix("\n")
