"""From a run's records.jsonl to records, and from records to a DataFrame."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from pydantic import ValidationError

from harness.analysis.coverage import has_plan
from harness.analysis.row import COLUMNS, FLOAT_COLUMNS, INTEGER_COLUMNS, NESTED_COLUMNS
from harness.analysis.rows import Rows
from harness.record import Record
from harness.running.run_directory import RunDirectory
from harness.running.run_kind import taken_for
from harness.yaml_source import InvalidFile, Mistake

RECORDS_FILE = "records.jsonl"


def read_records(run: Path) -> list[Record]:
    """The records of a run directory, or of one file, in the order of the file.

    A last line without its newline that is no JSON is what a killed run leaves behind: it is ignored, with a warning on
    stderr. Raises FileNotFoundError naming what is missing, and InvalidFile with file:line for every other bad line and
    for every second record of the same case and implementation.
    """
    file = _records_file(run)
    lines = file.read_bytes().split(b"\n")
    records: list[Record] = []
    mistakes: list[Mistake] = []
    first_line: dict[tuple[str, str], int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if number == len(lines) and not _is_json(line):
            print(f"{file}:{number}: ignored, the last line was not written to its end", file=sys.stderr)
            continue
        try:
            record = Record.model_validate_json(line)
        except ValidationError as error:
            mistakes.append(Mistake(str(file), number, _in_words(error)))
            continue
        key = (record.case_id, record.implementation)
        if key in first_line:
            message = f"a second record of {key[1]} on {key[0]}; the first is on line {first_line[key]}"
            mistakes.append(Mistake(str(file), number, message))
            continue
        first_line[key] = number
        records.append(record)
    if mistakes:
        raise InvalidFile(mistakes)
    return records


def to_frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row per record, columns as in `Row`; integers stay integers beside missing ones, nested values are JSON."""
    rows = Rows(records)
    frame = pd.DataFrame([asdict(rows.of(record)) for record in records], columns=list(COLUMNS))
    for name in NESTED_COLUMNS:
        frame[name] = [json.dumps(value, sort_keys=True) for value in frame[name]]
    dtypes = {**dict.fromkeys(INTEGER_COLUMNS, "Int64"), **dict.fromkeys(FLOAT_COLUMNS, "float64")}
    return frame.astype(dtypes)


def _records_file(run: Path) -> Path:
    file = run / RECORDS_FILE if run.is_dir() else run
    if file.is_file():
        return file
    if (other := taken_for(run, "suite")) is not None:
        raise FileNotFoundError(other)
    if has_plan(run):
        raise FileNotFoundError(f"{run}: no case is finished yet; continue with: {RunDirectory(run).resume_command}")
    if run.is_dir():
        raise FileNotFoundError(f"{run} is no run directory: it holds no {RECORDS_FILE}")
    raise FileNotFoundError(f"{run} does not exist: give a run directory or its {RECORDS_FILE}")


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:  # UnicodeDecodeError too: a line can be torn inside a character
        return False
    return True


def _in_words(error: ValidationError) -> str:
    problems = []
    for problem in error.errors(include_url=False):
        where = ".".join(str(part) for part in problem["loc"])
        problems.append(f"{where}: {problem['msg']}" if where else problem["msg"])
    shown = "; ".join(problems[:3])
    return f"no record: {shown}" + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
