"""The paper's Figure 4: what share of all entropies an LM head can reach, over hidden and vocabulary size. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from harness.calibration.entropy_bound import head_logit_norm, normalised_gap
from harness.calibration.figure_file import COLOURS, MARKERS, save_figure

# Of the models in the paper's text: Mistral-7B, LLaMA3, Gemma; and Gemma2-2B 2304, LLaMA3.2-1B 2048, 3B 3072, 8B 4096
PAPER_VOCAB_SIZES = (32_000, 128_256, 256_000)
PAPER_HIDDEN_SIZES = (2048, 2304, 3072, 4096)
# sigma_C * sigma_h; the paper gives none for its figure. At 0.2 the curves bend where the hidden sizes above lie
DEFAULT_RHO = 0.2


@dataclass(frozen=True)
class GapCurve:
    """One line of the figure."""

    vocab_size: int
    hidden_sizes: tuple[int, ...]
    gaps: tuple[float, ...]  # normalised, one for each hidden size


def gap_curves(vocab_sizes: Sequence[int], hidden_sizes: Sequence[int], rho: float) -> list[GapCurve]:
    """Normalised gaps at logit norm rho sqrt(D). Raises ValueError for a vocabulary below 2 or a negative rho."""
    return [
        GapCurve(v, tuple(hidden_sizes), tuple(normalised_gap(v, head_logit_norm(d, 1.0, rho)) for d in hidden_sizes))
        for v in vocab_sizes
    ]


def gap_figure(
    vocab_sizes: Sequence[int] = PAPER_VOCAB_SIZES,
    marked_hidden_sizes: Sequence[int] = PAPER_HIDDEN_SIZES,
    rho: float = DEFAULT_RHO,
) -> Figure:
    """A line a vocabulary, from half the least to twice the largest marked hidden size; markers on those.

    Raises ValueError as `gap_curves`, or for more vocabularies than seven colours tell apart.
    """
    if len(vocab_sizes) > len(COLOURS):
        raise ValueError(f"vocab_sizes must be at most {len(COLOURS)}, not {len(vocab_sizes)}")
    first, last = min(marked_hidden_sizes) // 2, max(marked_hidden_sizes) * 2
    steps = 200
    hidden_sizes = sorted({round(first * (last / first) ** (step / steps)) for step in range(steps + 1)})
    figure = Figure((8.0, 4.5), layout="constrained")
    axes = figure.subplots()
    lines = gap_curves(vocab_sizes, hidden_sizes, rho)
    marks = gap_curves(vocab_sizes, marked_hidden_sizes, rho)
    for line, mark, colour, marker in zip(lines, marks, COLOURS, MARKERS, strict=False):
        axes.plot(line.hidden_sizes, line.gaps, color=colour)
        axes.plot(mark.hidden_sizes, mark.gaps, color=colour, marker=marker, linestyle="none")
        axes.plot([], [], color=colour, marker=marker, label=f"V = {line.vocab_size}")
    axes.set_xscale("log", base=2)
    ticks = [first, *marked_hidden_sizes, last]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_ylim(0, 1)
    axes.set_xlabel("hidden size D")
    axes.set_ylabel("(log V - least entropy) / log V")
    axes.set_title(rf"Entropies within reach at logit norm $\rho\sqrt{{D}}$, $\rho$ = {rho:g}", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    return figure


def write_gap_figure(stem: Path, rho: float = DEFAULT_RHO) -> tuple[Path, Path]:
    """Writes the figure of the paper's sizes as `stem`.svg and `stem`.png; returns their paths."""
    return save_figure(gap_figure(rho=rho), stem)
