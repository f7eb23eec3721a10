"""The pictures of a run as files beside its records, and as lines of its report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from harness.analysis.frame import read_records
from harness.analysis.pictures.picture import Picture, Skipped
from harness.analysis.pictures.ratios import ratios
from harness.analysis.pictures.rounds import rounds
from harness.analysis.pictures.scaling import memory_scaling, time_scaling
from harness.analysis.pictures.smoothing import label_smoothing
from harness.analysis.pictures.time_error import time_error
from harness.analysis.pictures.time_memory import time_memory
from harness.calibration.figure_file import save_figure
from harness.record import Record

FOLDER = "pictures"
DRAWERS: tuple[Callable[[Sequence[Record]], Picture | Skipped], ...] = (
    time_memory,
    time_error,
    time_scaling,
    memory_scaling,
    label_smoothing,
    ratios,
    rounds,
)
TITLES = {  # by stem, in the order of DRAWERS: what a picture shows, also to those who cannot see it
    "time-memory": "Time against memory: fwd+bwd ms over peak MiB, the front of the rows that agree, and the floors",
    "time-error": "Time against error: GEMMs over the larger excess of dE and dC, a line through one with a knob",
    "scaling-time": "How fwd+bwd time grows with N, D and V, with the fitted exponents",
    "scaling-memory": "How the fwd+bwd peak grows with N, D and V, with the fitted exponents",
    "label-smoothing": "fwd+bwd time against the label smoothing β, with the change from the smallest β to the largest",
    "ratios": "Who is faster than the reference: paired ratios with their 95 % intervals, and the noise of the A/A",
    "rounds": "Round by round: every sample against its row's median, and the SM clock",
}


def draw_all(records: Sequence[Record]) -> list[Picture | Skipped]:
    """Every picture, or why there is none, in the order of TITLES."""
    return [draw(records) for draw in DRAWERS]


def write_pictures(run_dir: Path, records: Sequence[Record] | None = None) -> list[Path]:
    """Draws the run's records (read unless given) into RUN/pictures and returns the files, an SVG and a PNG each.

    The same records give the same SVG byte for byte. Files of pictures that the records no longer give are removed.
    Raises as `read_records` does.
    """
    folder = run_dir / FOLDER
    written: list[Path] = []
    for result in draw_all(read_records(run_dir) if records is None else records):
        if isinstance(result, Picture):
            written += save_figure(result.figure, folder / result.stem)
        else:
            for kind in ("svg", "png"):
                (folder / f"{result.stem}.{kind}").unlink(missing_ok=True)
    return written


def written_pictures(run_dir: Path) -> dict[str, Path]:
    """The SVG files that a run directory holds, by their titles."""
    files = {title: run_dir / FOLDER / f"{stem}.svg" for stem, title in TITLES.items()}
    return {title: file for title, file in files.items() if file.is_file()}


def as_markdown(run_dir: Path) -> list[str]:
    """The section of report.md that shows the run's pictures; empty if it has none."""
    files = written_pictures(run_dir)
    if not files:
        return []
    lines = ["## Pictures", ""]
    for title, file in files.items():
        lines += [f"**{title}**", "", f"![{title}]({FOLDER}/{file.name})", ""]
    return lines
