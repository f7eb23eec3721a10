"""Pictures as files: the same bytes for the same records, and none left over."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from harness.analysis.pictures.files import DRAWERS, TITLES, as_markdown, draw_all, write_pictures, written_pictures
from harness.analysis.report import render, write_report
from harness.analysis.statistics.error_rates import simulated_case
from harness.analysis.statistics.simulation import QUIET
from harness.record import Record

ROOT = Path(__file__).parents[4]
MakeRecord = Callable[..., Record]
WriteRun = Callable[[list[Record]], Path]


def test_every_picture_has_a_title() -> None:
    assert [result.stem for result in draw_all([])] == list(TITLES)
    assert len(DRAWERS) == len(TITLES)


def test_the_same_records_give_the_same_svg(
    scaling_run: list[Record], make_record: MakeRecord, write_run: WriteRun
) -> None:
    rounds = simulated_case(QUIET, 12, seed=0)
    compared = {"baseline": "base", "liger": "head"}  # with rounds enough for a ratio
    run = write_run(
        [*scaling_run, *(make_record(name, times=rounds.times(row), gemm_ms=None) for name, row in compared.items())]
    )
    files = write_pictures(run)
    assert [file.name for file in files] == [f"{stem}.{kind}" for stem in TITLES for kind in ("svg", "png")]
    svgs = {file: file.read_bytes() for file in files if file.suffix == ".svg"}
    program = (
        f"from pathlib import Path; from harness.analysis.pictures.files import *; write_pictures(Path({str(run)!r}))"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)  # another process, another hash seed
    assert {file: file.read_bytes() for file in svgs} == svgs
    assert not any(b"<dc:date>" in content for content in svgs.values())


def test_a_picture_that_is_no_more_is_removed(make_record: MakeRecord, write_run: WriteRun) -> None:
    run = write_run([make_record()])
    (run / "pictures").mkdir()
    stale = run / "pictures" / "label-smoothing.svg"
    stale.touch()
    assert [file.name for file in write_pictures(run)][::2] == ["time-memory.svg", "rounds.svg"]
    assert not stale.exists()
    assert [file.name for file in written_pictures(run).values()] == ["time-memory.svg", "rounds.svg"]


def test_the_report_shows_them_before_its_tables(make_record: MakeRecord, write_run: WriteRun) -> None:
    run = write_run([make_record()])
    assert as_markdown(run) == []
    assert "## Pictures" not in render(run, "markdown")  # printed before anything was drawn: no dead links
    text = write_report(run).read_text(encoding="utf-8")
    assert text.index("## Pictures") < text.index("(pictures/time-memory.svg)") < text.index("## N 8192")
    assert text.replace("\n".join(as_markdown(run)), "") != text
    without = text.split("\n## Pictures")[0] + "\n## N 8192" + text.split("\n## N 8192")[1]
    for file in (run / "pictures").iterdir():
        file.unlink()
    assert render(run, "markdown") + "\n" == without


def test_drawing_imports_no_torch() -> None:
    names = sorted(file.stem for file in (ROOT / "harness" / "analysis" / "pictures").glob("[a-z]*.py"))
    modules = ", ".join(f"harness.analysis.pictures.{name}" for name in names)
    program = f"import sys, {modules}; print([m for m in ('torch', 'triton') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
