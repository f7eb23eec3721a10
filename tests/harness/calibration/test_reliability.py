"""Diagrams and rows: that the picture shows the bins, is written twice alike, and needs no torch."""

import json
import math
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from harness.calibration.bins import Bins
from harness.calibration.entropy_bound import normalised_gap
from harness.calibration.entropy_figure import PAPER_VOCAB_SIZES, gap_curves, gap_figure, write_gap_figure
from harness.calibration.reliability import (
    Reliability,
    reliability_overlay,
    reliability_panels,
    write_reliability,
)
from harness.calibration.row import CalibrationRow, Metrics, Setting, as_json_lines, as_markdown

EDGES = (0.0, 0.25, 0.5, 0.75, 1.0)
OVERCONFIDENT = Bins(EDGES, (0, 40, 10, 1000), (0.0, 16.0, 6.0, 900.0), (0.0, 12.0, 6.0, 700.0), (0.0, 1.0, 1.0, 1.0))
UNDERCONFIDENT = Bins(EDGES, (5, 40, 10, 20), (1.0, 16.0, 6.0, 17.0), (1.0, 20.0, 8.0, 19.0), (0.1, 1.0, 1.0, 1.0))
MODELS = [Reliability("β = 0", OVERCONFIDENT), Reliability("β = 0.1", UNDERCONFIDENT)]


def test_panels_show_accuracy_and_gap():
    figure = reliability_panels(MODELS)
    upper, _, lower, _ = figure.axes
    shown = [number for bar in upper.patches for number in (bar.get_x(), bar.get_y(), bar.get_height())]
    # accuracy 12/40, 6/10, 700/1000; mean confidence 16/40, 6/10, 900/1000; the empty bin is not drawn
    assert shown == pytest.approx(
        [*(0.25, 0, 0.3), *(0.25, 0.3, 0.1), *(0.5, 0, 0.6), *(0.5, 0.6, 0.0), *(0.75, 0, 0.7), *(0.75, 0.7, 0.2)]
    )
    assert [bar.get_height() for bar in lower.patches] == [0, 40, 10, 1000]
    assert "ECE 19.43 %" in upper.get_title()  # (4 + 0 + 200) / 1050
    assert upper.get_title().startswith("β = 0\n")


def test_overlay_shows_points_and_counts():
    upper, lower = reliability_overlay(MODELS).axes
    lines = [line for line in upper.lines if line.get_marker() != "None"]
    assert list(lines[0].get_xdata()) == pytest.approx([0.4, 0.6, 0.9])
    assert list(lines[0].get_ydata()) == pytest.approx([0.3, 0.6, 0.7])
    assert len({line.get_marker() for line in lines}) == len({line.get_color() for line in lines}) == 2
    assert len(lower.patches) == 2


@pytest.mark.parametrize("overlaid", [False, True])
def test_files_are_complete_and_the_same_again(tmp_path, overlaid):
    svg, png = write_reliability(MODELS, tmp_path / "new" / "reliability", overlaid=overlaid)
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")
    data = png.read_bytes()
    assert data[:4] == b"\x89PNG"
    assert int.from_bytes(data[16:20]) == 1200
    again, _ = write_reliability(MODELS, tmp_path / "again" / "reliability", overlaid=overlaid)
    assert svg.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("count", [1, 3, 4, 5])
def test_any_number_of_panels(count):
    figure = reliability_panels(MODELS[:1] * count)
    assert sum(axes.axison for axes in figure.axes) == 2 * count


def test_too_many_or_no_models():
    with pytest.raises(ValueError, match="models must be 1 to 7, not 8"):
        reliability_overlay(MODELS * 4)
    with pytest.raises(ValueError, match="not 0"):
        reliability_panels([])


def test_bins_that_are_none():
    with pytest.raises(ValueError, match="all 0"):
        Bins((0.0, 1.0), (0,), (0.0,), (0.0,), (0.0,))
    with pytest.raises(ValueError, match="edges"):
        Bins((0.0, 0.5, 1.0), (1,), (0.5,), (1.0,), (0.25,))


def test_gap_figure_draws_the_bound(tmp_path):
    curve = gap_curves([32_000], [2048, 4096], 0.2)[0]
    assert curve.gaps == pytest.approx([normalised_gap(32_000, 0.2 * math.sqrt(d)) for d in (2048, 4096)])
    axes = gap_figure().axes[0]
    assert len([text for text in axes.get_legend().get_texts()]) == len(PAPER_VOCAB_SIZES)
    for line in axes.lines:
        heights = list(line.get_ydata())
        assert heights == sorted(heights)
    svg, png = write_gap_figure(tmp_path / "entropy")
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")
    assert int.from_bytes(png.read_bytes()[16:20]) == 1200


METRICS = Metrics(
    tokens=1000,
    bin_count=15,
    accuracy=0.5,
    loss_nats=2.0,
    entropy_nats=1.9,
    mean_confidence=0.53,
    ece=0.034,
    ece_floor=0.012,
    rms=0.05,
    mce=0.2,
    ece_mass=0.033,
    rms_mass=0.049,
    sce=1e-6,
    sce_total=0.065,
    sce_total_floor=0.061,
    ace=2e-6,
    ace_total=0.131,
    ace_total_floor=0.13,
)
ROWS = [
    CalibrationRow(Setting(0.0, None, 1024, 65536), METRICS),
    CalibrationRow(Setting(0.1, 30.0, 1024, 65536, seed=1), METRICS, temperature=1.25, temperature_scaled=True),
]


def test_rows_as_text():
    first, second = (json.loads(line) for line in as_json_lines(ROWS).splitlines())
    assert first["softcap"] is None
    assert second["temperature"] == 1.25
    assert second["ece_mass"] == 0.033
    assert len(first) == 5 + 2 + 18
    head, _, row, other = as_markdown(ROWS).splitlines()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert len(head.strip("|").split("|")) == len(cells)
    assert cells[:9] == ["0", "—", "1024", "65536", "0", "—", "50.00", "2.000", "1.900"]
    assert cells[9:] == ["3.40 (1.20)", "5.00", "20.00", "3.30", "6.50 (6.10)", "13.10 (13.00)"]
    assert "1.250" in other


def test_an_unscaled_row_has_temperature_one():
    with pytest.raises(ValueError, match="must be 1"):
        CalibrationRow(Setting(0.0, None, 8, 8), METRICS, temperature=2.0)


def test_reading_and_drawing_do_not_load_torch():
    modules = ("bins", "row", "reliability", "figure_file", "entropy_bound", "entropy_figure")
    imports = "; ".join(f"import harness.calibration.{module}" for module in modules)
    code = f"{imports}; import sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
