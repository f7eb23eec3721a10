"""report.html in a headless Chromium: it sorts, and it is drawn."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from harness.analysis.report import write_report
from harness.record import Record

MakeRecord = Callable[..., Record]
WriteRun = Callable[[list[Record]], Path]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: it is the package `chromium` of Debian")


@pytest.fixture
def page(make_record: MakeRecord, write_run: WriteRun) -> Path:
    """Rows in no order of time: 30, 9, 100 ms, and one without."""
    rows = {"middle": 30, "fast": 9, "slow": 100}
    records = [make_record(name, ms=(total / 3, total * 2 / 3)) for name, total in rows.items()]
    run = write_run([make_record("never-ran", "unavailable"), *records])
    write_report(run)
    return run / "report.html"


def chromium(profile: Path, url: str, *options: str) -> str:
    """What it prints; a profile of its own, so that no browser that runs already answers instead."""
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
        f"--user-data-dir={profile}", "--virtual-time-budget=2000", *options, url,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def names(dom: str) -> list[str]:
    return re.findall(r'<th scope="row"[^>]*>([^<]+)</th>', dom)


def column(dom: str, head: str) -> int:
    return re.findall(r'<th scope="col"[^>]*><button type="button">([^<]+)</button></th>', dom).index(head)


@pytest.mark.parametrize(
    ("direction", "order"),
    [("ascending", ["fast", "middle", "slow", "never-ran"]), ("descending", ["slow", "middle", "fast", "never-ran"])],
)
def test_an_address_that_sorts(page: Path, tmp_path: Path, direction: str, order: list[str]) -> None:
    place = column(page.read_text(encoding="utf-8"), "fwd+bwd ms")
    dom = chromium(tmp_path / "profile", f"{page.as_uri()}#sort=table-1,{place},{direction}", "--dump-dom")
    assert names(dom) == order  # as numbers, not as text: 9 before 30; without a number last either way
    assert re.findall(r'<th[^>]* aria-sort="(\w+)"', dom) == [direction]
    first = re.search(r"<tbody>\s*<tr[^>]*>(.*?)</tr>", dom, flags=re.DOTALL)
    assert first is not None
    cells = re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", first[1])
    assert cells[place] == ("9.00" if direction == "ascending" else "100.0")


def test_clicks_on_a_head_sort(page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    place = column(text, "fwd+bwd ms")
    click = f'<script>document.querySelectorAll("thead button")[{place}].click();</script>'
    for clicks, order in ((1, ["fast", "middle", "slow"]), (2, ["slow", "middle", "fast"])):
        clicked = tmp_path / f"clicked-{clicks}.html"
        clicked.write_text(text.replace("</body>", click * clicks + "</body>"), encoding="utf-8")
        assert names(chromium(tmp_path / "profile", clicked.as_uri(), "--dump-dom")) == [*order, "never-ran"]


@pytest.mark.parametrize("dark", [False, True])
def test_it_is_drawn(page: Path, tmp_path: Path, dark: bool) -> None:
    shot = tmp_path / "shot.png"
    options = ["--blink-settings=preferredColorScheme=0"] if dark else []
    chromium(tmp_path / "profile", page.as_uri(), f"--screenshot={shot}", "--window-size=1000,1400", *options)
    pixels = (matplotlib.image.imread(shot)[:, :, :3] * 255).round().astype(np.uint8)
    assert pixels.shape == (1400, 1000, 3)
    colours = np.unique(pixels.reshape(-1, 3), axis=0)
    assert len(colours) > 50  # text alone is greys; the pictures bring their palette
    assert any((colours == (0x00, 0x72, 0xB2)).all(axis=1))  # the blue of rows that agree
    assert bool(pixels[1, 1].mean() < 64) is dark
