"""How figures of this package are written, and the colours and markers that they share."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

# Okabe and Ito, Color Universal Design (2008), less black, which is the diagonal's, and yellow, too pale for lines
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DOTS_PER_INCH = 150  # 1200 pixels at 8 inches: sharp at a README's 800 to 900


def save_figure(figure: Figure, stem: Path) -> tuple[Path, Path]:
    """Writes `stem`.svg and `stem`.png, creating the folder; returns their paths.

    The SVG holds neither date nor random ids, so that a figure drawn again from the same numbers shows no difference.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    svg, png = (stem.with_name(f"{stem.name}.{kind}") for kind in ("svg", "png"))
    with mpl.rc_context({"svg.hashsalt": stem.name}):
        figure.savefig(svg, metadata={"Date": None}, facecolor="white")
    figure.savefig(png, dpi=_DOTS_PER_INCH, facecolor="white")
    return svg, png
