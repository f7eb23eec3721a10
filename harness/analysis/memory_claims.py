"""Claims about memory, tested: whether a row holds logits, and how its peak grows with N, V and D.

`no_logits` takes both: beyond the gradients the peak is at most 5 % of the logits' bytes, and no more than 5 % of the
logits show in its growth with N * V. A single block's size would prove nothing: dC itself has 2 D V bytes, and eight
chunks alive at once are the logits.

Growth is fitted to (peak - gradients) = a + b N/N0 + c V/V0 + d D/D0 + e (N/N0) (V/V0), all at least 0, over the cases
of a suite that differ in shape alone; N0, V0, D0 are the values that most of them have. Without a case that changes N
and V together, e cannot be told from b and c, and is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.analysis.formats import DASH, figures_table, mib, number, percent
from harness.case import Case
from harness.cost import logits_bytes
from harness.record import Record

MOST_LOGITS = 0.05  # the share of the logits that statistics of rows and slices may take
_SHAPE = ("tokens", "vocab_size", "hidden_size")
_FEWEST_CASES = 6


@dataclass(frozen=True)
class Growth:
    """How the peak beyond the gradients grows around one shape."""

    implementation: str
    setting: Case  # with the shape that it is around
    per_token_bytes: float  # of one more token at that V and D, what is due to N * V included
    per_class_bytes: float
    per_hidden_bytes: float
    logits_share: float | None  # bytes per element of the logits over their itemsize; None: N and V never vary together
    worst_residual: float  # of the fit, over the largest peak


def beyond_gradients(record: Record) -> int | None:
    """Bytes of the fwd+bwd peak that are no gradient; None where no memory was measured."""
    if record.memory is None or record.analytic:
        return None
    return record.memory.fwd_bwd_peak_bytes - record.gradient_floor_bytes


def held_logits(record: Record) -> float | None:
    """The same over the bytes of the case's logits."""
    beyond = beyond_gradients(record)
    return None if beyond is None else beyond / logits_bytes(record.case)


def no_logits(record: Record, growth: Growth | None) -> bool | None:
    """Whether the row keeps the claim, by its peak and, where it was fitted, by its growth."""
    held = held_logits(record)
    if held is None:
        return None
    share = growth.logits_share if growth is not None else None
    return held <= MOST_LOGITS and (share is None or share <= MOST_LOGITS)


def growths(records: Sequence[Record]) -> list[Growth]:
    """One for each implementation and setting of which enough shapes were measured; the shape varies alone."""
    groups: dict[tuple[str, Case], list[Record]] = {}
    for record in records:
        if beyond_gradients(record) is not None:
            setting = record.case.model_copy(update=dict.fromkeys(_SHAPE, 2))
            groups.setdefault((record.implementation, setting), []).append(record)
    fitted = (_fitted(name, setting, group) for (name, setting), group in groups.items())
    return [growth for growth in fitted if growth is not None]


def _fitted(name: str, setting: Case, records: Sequence[Record]) -> Growth | None:
    centre = {axis: Counter(getattr(r.case, axis) for r in records).most_common(1)[0][0] for axis in _SHAPE}
    shapes = np.array([[getattr(r.case, axis) / centre[axis] for axis in _SHAPE] for r in records])
    peaks = np.array([beyond_gradients(r) or 0 for r in records], dtype=np.float64)
    n, v, d = shapes.T
    terms = np.stack([np.ones_like(n), n, v, d, n * v], axis=1)
    separable = bool(np.linalg.matrix_rank(terms) == terms.shape[1])
    if not separable:
        terms = terms[:, :4]
    if len(records) < _FEWEST_CASES or np.linalg.matrix_rank(terms) < terms.shape[1]:
        return None
    fit = _not_negative(terms, peaks)
    of_logits = fit[4] if separable else 0.0
    case = setting.model_copy(update=centre)
    return Growth(
        implementation=name,
        setting=case,
        per_token_bytes=float(fit[1] + of_logits) / case.tokens,
        per_class_bytes=float(fit[2] + of_logits) / case.vocab_size,
        per_hidden_bytes=float(fit[3]) / case.hidden_size,
        logits_share=float(of_logits) / logits_bytes(case) if separable else None,
        worst_residual=float(np.abs(terms @ fit - peaks).max() / max(1.0, peaks.max())),
    )


def _not_negative(terms: np.ndarray, peaks: np.ndarray) -> np.ndarray:
    """Least squares with no coefficient below 0: memory is not given back for more work. Drops the most negative."""
    kept = list(range(terms.shape[1]))
    weights = 1 / np.maximum(peaks, 0.01 * max(1.0, float(peaks.max())))  # small cases count as much as large ones
    while True:
        fit = np.linalg.lstsq(terms[:, kept] * weights[:, None], peaks * weights, rcond=None)[0]
        if not kept or fit.min() >= 0:
            break
        kept.pop(int(fit.argmin()))
    whole = np.zeros(terms.shape[1])
    whole[kept] = fit
    return whole


def claims_table(records: Sequence[Record], fitted: Sequence[Growth]) -> list[str]:
    """The lines of one setting: what its peaks say of logits, leaks and memory outside the allocator, of what they are.

    None where no memory was measured, and in runs from before leaks were.
    """
    body, blocks = [], []
    for record in records:
        memory, held = record.memory, held_logits(record)
        if memory is None or held is None or memory.leaked_bytes is None:
            continue
        claim = no_logits(record, _growth_of(record, fitted))
        outside = None
        if memory.device_growth_bytes is not None and memory.reserved_growth_bytes is not None:
            outside = max(0, memory.device_growth_bytes - memory.reserved_growth_bytes)
        body.append(
            [
                record.implementation.replace("|", r"\|"),
                number(record.case.label_smoothing),
                percent(held),
                "yes" if claim else "no",
                mib(memory.leaked_bytes),
                mib(memory.reserved_growth_bytes),
                mib(outside),
            ]
        )
        largest = "; ".join(
            f"{mib(b.bytes)} MiB in {b.count} at `{' < '.join(b.frames) or 'no Python frame'}`"
            for b in memory.peak_blocks
        )
        if largest:
            blocks.append(f"- {record.implementation}, β = {number(record.case.label_smoothing)}: {largest}")
    if not body:
        return []
    headers = [
        "implementation",
        "β",
        "beyond gradients / logits",
        "no logits",
        "leaked MiB",
        "taken MiB",
        "outside MiB",
    ]
    table = figures_table(headers, body)
    legend = (
        f"No logits: at most {percent(MOST_LOGITS)} of their bytes beyond the gradients, whatever these hold, and in "
        "the growth with N x V where that is fitted. Leaked: live after the call. Taken: by torch's allocator from the "
        "device; outside: by others during the call, by NVML."
    )
    made = ["Live at the peak, the largest places first:", "", *blocks, ""] if blocks else []
    return ["What is held in memory:", "", table, "", f"- {legend}", "", *made]


def _growth_of(record: Record, fitted: Sequence[Growth]) -> Growth | None:
    for growth in fitted:
        rest = growth.setting.model_copy(update={axis: getattr(record.case, axis) for axis in _SHAPE})
        if growth.implementation == record.implementation and rest == record.case:
            return growth
    return None


def growth_section(records: Sequence[Record]) -> list[str]:
    """The lines of the whole run's growth table; none where nothing could be fitted."""
    fitted = growths(records)
    if not fitted:
        return []
    body = [
        [
            growth.implementation.replace("|", r"\|"),
            number(growth.setting.label_smoothing),
            f"{growth.per_token_bytes:.0f}",
            f"{growth.per_class_bytes:.0f}",
            f"{growth.per_hidden_bytes:.0f}",
            DASH if growth.logits_share is None else percent(growth.logits_share),
            percent(growth.worst_residual),
        ]
        for growth in fitted
    ]
    headers = [
        "implementation",
        "β",
        "bytes per token",
        "per class",
        "per hidden unit",
        "logits held",
        "worst residual",
    ]
    table = figures_table(headers, body)
    case = fitted[0].setting
    legend = (
        f"Growth of the fwd+bwd peak beyond the gradients around N {case.tokens}, D {case.hidden_size}, V "
        f"{case.vocab_size}, fitted; logits held is its growth with N x V over the logits' bytes."
    )
    return ["## Growth of the peak", "", table, "", f"- {legend}", ""]
