"""The second table of a setting: how gradients are off, and the checks that need no oracle. See docs/method.md."""

from __future__ import annotations

from collections.abc import Sequence

from harness.analysis.formats import DASH, error, figures_table, number
from harness.checks import Check, Diagnostics
from harness.record import Agreement, Record

HEADERS = (
    "implementation",
    "β",
    "dE slope - 1",
    "dC slope - 1",
    "dC error, smallest tenth",
    "largest tenth",
    "cold rows, median",
    "99 %",
    "AdamW step",
    "mass",
    "linear",
    "permuted",
    "shifted",
    "repeated",
)
_CHECKS = ("mass", "linearity", "permutation", "shift", "repeat")
_LEGEND = (
    "Not judged, beside eager arithmetic's own: slope of the gradient on the true one, less 1; error of the tenth of "
    "dC's elements that are smallest and of the largest; error of dC's rows that are never a target; error of the "
    "first AdamW step. Judged, each as a share of its limit, so that more than 1 disagrees: rows of dC add up to zero; "
    "linear in the upstream gradient; equivariant under a permutation of the vocabulary; invariant under a shift of "
    "the logits; the same again on poisoned memory (bits: to the last bit)."
)


def agreement_details(records: Sequence[Record]) -> list[str]:
    """The lines of one setting's second table; none where no record has details, as those from before them."""
    body: list[list[str]] = []
    for smoothing in sorted({record.case.label_smoothing for record in records}, reverse=True):
        block = [
            (record.implementation, record.agreement)
            for record in records
            if record.case.label_smoothing == smoothing and record.agreement and record.agreement.checks
        ]
        eager = next((found.eager_diagnostics for _, found in block if found.eager_diagnostics), None)
        if eager is not None:
            body.append(["*eager arithmetic*", number(smoothing), *_diagnosed(eager), *[""] * len(_CHECKS)])
        body += [[name.replace("|", r"\|"), number(smoothing), *_cells(found)] for name, found in block]
    if not body:
        return []
    table = figures_table(HEADERS, body)
    return ["How the gradients are off:", "", table, "", f"- {_LEGEND}", ""]


def _cells(found: Agreement) -> list[str]:
    checks = found.checks
    if checks is None:
        return []
    shown = [share_of_limit(getattr(checks, name)) for name in _CHECKS]
    if checks.repeats_bitwise:
        shown[-1] = "bits"
    return [*_diagnosed(found.diagnostics), *shown]


def _diagnosed(found: Diagnostics | None) -> list[str]:
    if found is None:
        return [DASH] * 7
    deciles = found.grad_weight_decile_errors
    return [
        _off_one(found.grad_input_slope),
        _off_one(found.grad_weight_slope),
        error(deciles[0] if deciles else None),
        error(deciles[-1] if deciles else None),
        error(found.cold_row_error_median),
        error(found.cold_row_error_p99),
        error(found.adamw_step_error),
    ]


def _off_one(slope: float | None) -> str:
    return DASH if slope is None else f"{slope - 1:+.1e}"


def share_of_limit(check: Check | None) -> str:
    """0.31, or **3.2** where the limit is broken; — where the check does not apply."""
    if check is None:
        return DASH
    if check.deviation is None:
        return "**not finite**"
    share = check.deviation / check.limit
    return f"**{share:.2g}**" if share > 1 else f"{share:.2g}"
