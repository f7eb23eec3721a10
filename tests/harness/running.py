"""The command line as a process, and the records that it leaves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from harness.record import Record

HARNESS = [sys.executable, "-m", "harness"]


def harness(*arguments: str | Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*HARNESS, *map(str, arguments)], capture_output=True, text=True, check=False, **settings)


def records(directory: Path) -> list[Record]:
    whole, _, _ = (directory / "records.jsonl").read_text().rpartition("\n")  # a kill may tear the last line
    return [Record.model_validate_json(line) for line in whole.splitlines()]
