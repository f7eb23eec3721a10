"""The report of a calibration sweep: tables, reliability diagrams, the entropy bound; and its rows as JSON lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.atomic import new_file
from harness.calibration.entropy_figure import write_gap_figure
from harness.calibration.judged import JudgedModel, write_judged
from harness.calibration.reliability import Reliability, write_reliability
from harness.calibration.row import as_json_lines, as_markdown, entropy_table


def write_report(directory: Path, judged: Sequence[JudgedModel], left_out: Sequence[str]) -> str:
    """Writes rows.jsonl, judged.jsonl, report.md and the pictures; returns the report's text."""
    directory.mkdir(parents=True, exist_ok=True)
    ordered = sorted(judged, key=_by_setting)
    rows = [row for model in ordered for row in (model.plain, model.scaled)]
    with new_file(directory / "rows.jsonl") as temporary:
        temporary.write_text(as_json_lines(rows) + "\n", encoding="utf-8")
    write_judged(ordered, directory)
    lines = [*_heading(ordered), "", as_markdown(rows), "", *_LEGEND, ""]
    for group in _groups(ordered):
        setting = group[0].plain.setting
        capped = "" if setting.softcap is None else f"-cap{setting.softcap:g}"
        stem = directory / f"reliability-d{setting.hidden_size}{capped}"
        models = [Reliability(_beta(model), model.plain_bins) for model in group]
        models += [Reliability(f"{_beta(model)}, scaled", model.scaled_bins) for model in group[:1]]
        svg, _png = write_reliability(models, stem)
        softcap = "no softcap" if setting.softcap is None else f"softcap {setting.softcap:g}"
        lines += [f"## Reliability, D {setting.hidden_size}, {softcap}", "", f"![reliability]({svg.name})", ""]
    lines += ["## Entropy and its bounds", "", entropy_table([model.entropy for model in ordered]), "", *_BOUNDS, ""]
    svg, _png = write_gap_figure(directory / "entropy-bound")
    lines += ["The paper's Figure 4, of heads of its sizes and an assumed norm, not of the models above:", ""]
    lines += [f"![the share of entropies that a head can reach]({svg.name})", ""]
    if left_out:
        lines += ["Left out:", "", *(f"- {line}" for line in left_out), ""]
    text = "\n".join(lines)
    with new_file(directory / "report.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text


_LEGEND = (
    "As trained, and (with a T) after temperature scaling; T is fitted on held-out tokens before those that judge. "
    "Loss is the plain likelihood, whatever β was. ECE, RMS, MCE: 15 bins of equal width; ACE: of equal mass; in "
    "brackets what sampling alone would give. docs/calibration.md defines all of them.",
)
_BOUNDS = (
    "Nats, means over tokens: entropy of the predictions; the least of any token; the bound by the norm of a token's "
    "own centred logits, and by that of head and hidden state; the paper's Theorem 4.2 with the measured sizes; log V. "
    "*below* counts tokens whose entropy is below the first bound: a mistake somewhere, if it is not 0.",
)


def _by_setting(model: JudgedModel) -> tuple[int, float, float]:
    setting = model.plain.setting
    return setting.hidden_size, setting.softcap or 0.0, setting.label_smoothing


def _groups(ordered: Sequence[JudgedModel]) -> list[list[JudgedModel]]:
    groups: dict[tuple[int, float], list[JudgedModel]] = {}
    for model in ordered:
        groups.setdefault(_by_setting(model)[:2], []).append(model)
    return list(groups.values())


def _beta(model: JudgedModel) -> str:
    return f"β {model.plain.setting.label_smoothing:g}"


def _heading(judged: Sequence[JudgedModel]) -> list[str]:
    origins = dict.fromkeys(model.trained for model in judged)
    tokens = sorted({model.plain.metrics.tokens for model in judged})
    judging = f"- judged on {' or '.join(map(str, tokens))} held-out tokens"
    return ["# Calibration", "", *(f"- {origin}" for origin in origins), judging]
