"""Writes README's two tables and its picture from the records that they name: `python docs/readme.py`, from the root.

Each table stands under a comment that says where it is from; what else README says of numbers is by hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from harness.analysis.formats import MIB
from harness.analysis.frame import read_records
from harness.analysis.pictures.picture import Picture
from harness.analysis.pictures.time_memory import time_memory
from harness.analysis.row import Row
from harness.analysis.rows import Rows
from harness.calibration.figure_file import save_figure
from harness.record import Record

README = Path("README.md")
PICTURE = Path("docs/time-memory")
CASE = re.compile(r"<!-- from (?P<run>\S+), case (?P<case>\S+); .*?-->\n(?P<table>(?:\|.*\n)+)")
HEADS = re.compile(r"<!-- heads from (?P<run>\S+), β = (?P<beta>\S+); .*?-->\n(?P<table>(?:\|.*\n)+)")


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def significant(value: float) -> str:
    """Two digits after the point below 1, two in all from there on."""
    return f"{value:.2f}" if value < 0.995 else f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def case_lines(rows: Sequence[Row]) -> Iterator[str]:
    """The rows of one case: those that agree from the fastest on, then those that do not, then what did not run."""
    places = {"ok": 0, "disagrees": 1}
    for row in sorted(rows, key=lambda row: (places.get(row.status, 2), row.fwd_bwd_ms or 0.0)):
        name = row.implementation + (" (torch eager)" if row.implementation == "baseline" else "")
        if not row.samples:
            yield line(name, *["—"] * 6, row.status)
            continue
        gemms = f"{row.fwd_bwd_gemms:.2f}" if row.fwd_bwd_gemms < 10 else f"{row.fwd_bwd_gemms:.1f}"
        times = [f"{row.fwd_bwd_ms:.1f}", gemms]
        yield line(
            name,
            *(times if row.status == "ok" else [f"({time})" for time in times]),
            f"{row.fwd_bwd_peak_bytes / MIB:.0f}",
            f"{row.grad_input_error:.1e}",
            f"{row.grad_weight_error:.1e}",
            f"{significant(row.grad_input_excess)} / {significant(row.grad_weight_excess)}",
            row.status,
        )


def head_lines(rows: Sequence[Row], named: Sequence[str], beta: float) -> Iterator[str]:
    """`ours` on each head that the table names as "Name, V 1, D 2", beside the exact path and peers."""
    for head in named:
        sizes = [int(number) for number in re.findall(r"[VD] (\d+)", head)]
        found = [row for row in rows if [row.vocab_size, row.hidden_size, row.label_smoothing] == [*sizes, beta]]
        of = {row.implementation: row for row in found}
        ours, exact, *peers = (of[name] for name in ("ours", "ours-exact", "torch-compile", "baseline", "liger"))
        gemms = [(row, f"{row.fwd_bwd_gemms:.2f}") for row in (ours, exact, *peers)]
        yield line(
            head,
            f"{ours.fwd_bwd_ms:.1f}",
            *(number if row.status == "ok" else f"({number})" for row, number in gemms),
            *(f"{row.fwd_bwd_peak_bytes / MIB:.0f}" for row in (ours, *peers)),
            f"{ours.grad_input_excess:.2f} / {ours.grad_weight_excess:.2f}",
        )


def found_in(text: str, pattern: re.Pattern[str]) -> re.Match[str]:
    found = pattern.search(text)
    assert found is not None, pattern.pattern
    return found


def records_of_case(found: re.Match[str]) -> list[Record]:
    return [record for record in read_records(Path(found["run"])) if record.case_id == found["case"]]


def with_lines(text: str, found: re.Match[str], lines: Iterable[str]) -> str:
    """`text` with other lines in the table that was found, under the same head."""
    head = found["table"].splitlines(keepends=True)[:2]
    return text[: found.start("table")] + "".join([*head, *lines]) + text[found.end("table") :]


def written(text: str) -> str:
    """README with its tables written anew."""
    found = found_in(text, CASE)
    text = with_lines(text, found, case_lines([row for row in Rows(records_of_case(found)) if not row.analytic]))
    found = found_in(text, HEADS)
    named = [cells.strip("|").split("|")[0].strip() for cells in found["table"].splitlines()[2:]]
    return with_lines(
        text, found, head_lines(list(Rows(read_records(Path(found["run"])))), named, float(found["beta"]))
    )


def draw(text: str, stem: Path) -> tuple[Path, Path]:
    """The picture of the first table's case, as SVG and PNG."""
    drawn = time_memory(records_of_case(found_in(text, CASE)))
    assert isinstance(drawn, Picture)
    return save_figure(drawn.figure, stem)


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
    draw(README.read_text(), PICTURE)
