"""A row of the calibration sweep: a trained model's setting, whether it was scaled, and its metrics. No torch here.

Metrics are fractions (accuracy and errors) or nats (loss and entropy), never per cents; None where one was not
computed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tabulate import tabulate

from harness.analysis.formats import DASH, number


@dataclass(frozen=True)
class Metrics:
    """Of one head on one set of tokens. Suffix _mass: bins of equal mass, else of equal width. docs/calibration.md."""

    tokens: int  # that counted
    bin_count: int
    accuracy: float
    loss_nats: float  # mean negative log-likelihood, no label smoothing
    entropy_nats: float  # mean
    mean_confidence: float
    ece: float
    ece_floor: float  # what sampling alone would give
    rms: float
    mce: float
    ece_mass: float  # top-label ACE
    rms_mass: float
    sce: float | None = None  # mean over classes
    sce_total: float | None = None  # summed over classes
    sce_total_floor: float | None = None  # the same, with targets drawn from the model's own predictions
    ace: float | None = None
    ace_total: float | None = None
    ace_total_floor: float | None = None


@dataclass(frozen=True)
class Setting:
    """What distinguishes the models of a sweep."""

    label_smoothing: float
    softcap: float | None
    hidden_size: int
    vocab_size: int
    seed: int = 0

    @property
    def label(self) -> str:
        """How reports call the model; the seed is not in it."""
        capped = "" if self.softcap is None else f", softcap {self.softcap:g}"
        return f"β {self.label_smoothing:g}, D {self.hidden_size}{capped}"


@dataclass(frozen=True)
class CalibrationRow:
    """One setting, as trained or after temperature scaling, on held-out tokens."""

    setting: Setting
    metrics: Metrics
    temperature: float = 1.0
    temperature_scaled: bool = False

    def __post_init__(self) -> None:
        if not self.temperature_scaled and self.temperature != 1.0:
            raise ValueError(f"temperature is {self.temperature} in a row that is not temperature_scaled; it must be 1")


@dataclass(frozen=True)
class EntropyRow:
    """Entropies of a model's predictions beside what bounds them from below, in nats; docs/calibration.md."""

    setting: Setting
    mean_nats: float
    least_nats: float  # of any token
    bound_of_its_logits_nats: float  # mean over tokens: by the norm of the token's centred logits
    bound_of_head_nats: float  # mean over tokens: by the centred head's norm and the hidden state's
    theorem_bound_nats: float  # the paper's Theorem 4.2, with the measured sizes
    maximum_nats: float  # log V
    violations: int  # tokens below the first bound


def flat(row: CalibrationRow) -> dict[str, float | int | bool | None]:
    """One level of names, as in a JSON line or a frame: setting, temperature, temperature_scaled, metrics."""
    scaled = {"temperature": row.temperature, "temperature_scaled": row.temperature_scaled}
    return {**asdict(row.setting), **scaled, **asdict(row.metrics)}


def as_json_lines(rows: Sequence[CalibrationRow]) -> str:
    """One strict JSON object a line; raises ValueError on a number that is not finite. No newline at the end."""
    return "\n".join(json.dumps(flat(row), allow_nan=False) for row in rows)


def as_markdown(rows: Sequence[CalibrationRow]) -> str:
    """A table, the rows in the given order; errors in per cent, since their differences are in the third digit."""
    return tabulate(
        [_cells(row) for row in rows],
        headers=list(_HEADERS),
        tablefmt="pipe",
        disable_numparse=True,
        colalign=["right"] * len(_HEADERS),
    )


def entropy_table(rows: Sequence[EntropyRow]) -> str:
    """A row per model, in the given order."""
    headers = ["β", "softcap", "D", "entropy", "least", "bound: own logits", "bound: head", "theorem", "log V", "below"]
    cells = [
        [
            number(row.setting.label_smoothing),
            DASH if row.setting.softcap is None else number(row.setting.softcap),
            str(row.setting.hidden_size),
            f"{row.mean_nats:.3f}",
            f"{row.least_nats:.2g}",
            f"{row.bound_of_its_logits_nats:.2g}",
            f"{row.bound_of_head_nats:.2g}",
            f"{row.theorem_bound_nats:.2g}",
            f"{row.maximum_nats:.2f}",
            str(row.violations),
        ]
        for row in rows
    ]
    return tabulate(cells, headers=headers, tablefmt="pipe", disable_numparse=True, colalign=["right"] * len(headers))


_HEADERS = (
    "β",
    "softcap",
    "D",
    "V",
    "seed",
    "T",
    "accuracy %",
    "loss nats",
    "entropy nats",
    "ECE % (floor)",
    "RMS %",
    "MCE %",
    "ACE % (top)",
    "SCE sum % (floor)",
    "ACE sum % (floor)",
)


def _cells(row: CalibrationRow) -> list[str]:
    setting, metrics = row.setting, row.metrics
    return [
        number(setting.label_smoothing),
        DASH if setting.softcap is None else number(setting.softcap),
        str(setting.hidden_size),
        str(setting.vocab_size),
        str(setting.seed),
        f"{row.temperature:.3f}" if row.temperature_scaled else DASH,
        _percent(metrics.accuracy),
        f"{metrics.loss_nats:.3f}",
        f"{metrics.entropy_nats:.3f}",
        f"{_percent(metrics.ece)} ({_percent(metrics.ece_floor)})",
        _percent(metrics.rms),
        _percent(metrics.mce),
        _percent(metrics.ece_mass),
        f"{_percent(metrics.sce_total)} ({_percent(metrics.sce_total_floor)})",
        f"{_percent(metrics.ace_total)} ({_percent(metrics.ace_total_floor)})",
    ]


def _percent(value: float | None) -> str:
    return DASH if value is None else f"{100 * value:.2f}"
