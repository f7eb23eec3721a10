"""Everything of eager arithmetic that implementations of a case are judged by, computed once, by the referee."""

from __future__ import annotations

import math

import torch
from pydantic import BaseModel, ConfigDict

from harness.case import Case
from harness.checks import Diagnostics
from harness.worker.agreement import rounding_floor
from harness.worker.diagnostics import diagnostics
from harness.worker.eager import EagerErrors, EagerPass, eager_pass, errors_of, most_tokens
from harness.worker.errors import loss_scale
from harness.worker.identities import constant_column, mass, most_shifted, shift_for
from harness.worker.inputs import Tensors
from harness.worker.oracle import Oracle
from harness.worker.sketch import deviation, sketch

ORACLE_SHARE = 0.6  # of the free memory; the rest stays for the gradients that are compared
_MASS_FACTOR = 2.0  # a rest of the gradient's sum beyond this multiple of eager's is no rounding


class Yardstick(BaseModel):
    """What travels from the referee to the workers, as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    errors: EagerErrors
    diagnostics: Diagnostics | None
    mass_limit: float | None  # of norm(sum_v dC_v) / sum_v norm(dC_v); None where the identity does not hold
    shift: dict[str, float]  # deviations under a shift of loss, grad_input, grad_weight; empty where it does not hold


def yardstick(case: Case, tensors: Tensors, oracle: Oracle, memory_budget_bytes: int) -> Yardstick:
    """Eager arithmetic on `case`, its errors, and how far it breaks the identities."""
    passed = eager_pass(case, tensors, oracle.weight_rows, memory_budget_bytes)
    errors = errors_of(passed, case, oracle)
    finite = errors.grad_input is not None and errors.grad_weight is not None
    looked = diagnostics(*passed.gradients[:2], oracle, tensors.target) if finite else None
    limit = _mass_limit(case, passed, errors) if oracle.weight_rows is None else None
    del passed
    shift = _shift(case, tensors, oracle, memory_budget_bytes) if finite else {}
    return Yardstick(errors=errors, diagnostics=looked, mass_limit=limit, shift=shift)


def _mass_limit(case: Case, passed: EagerPass, errors: EagerErrors) -> float | None:
    """Twice what eager leaves, or what errors of its size leave if each is independent, where that is more.

    One draw may cancel by chance: with a single token a single rounding decides. dz is rounded once, and rows of dC are
    off by eager's error, each by itself.
    """
    found = mass(passed.gradients.grad_weight) if case.softcap is None else None
    if found is None or errors.grad_weight is None:
        return None
    rest, norm_sum, norm = found
    floor = rounding_floor(case.dtype)
    independent = math.hypot(floor * math.sqrt(passed.rounding_energy), max(floor, errors.grad_weight) * norm)
    return _MASS_FACTOR * max(rest, independent) / norm_sum


@torch.no_grad()
def _shift(case: Case, tensors: Tensors, oracle: Oracle, memory_budget_bytes: int) -> dict[str, float]:
    """How far eager's own loss and gradients move under the shift, on one chunk of tokens, the most moved."""
    shift = shift_for(tensors.input)
    scale = loss_scale(case, oracle) / (oracle.counted_rows if case.reduction == "sum" and oracle.counted_rows else 1)
    if case.softcap is not None or shift is None or not scale:
        return {}
    count = min(case.tokens, most_tokens(tensors.input.dtype))
    part, few = most_shifted(tensors, shift.column, count), case.model_copy(update={"tokens": count})
    seen, losses = [], []
    for value in (0.0, shift.value):
        with constant_column(tensors.linear_weight, shift.column, value):
            passed = eager_pass(few, part, oracle.weight_rows, memory_budget_bytes)
        seen.append(sketch(passed.token_loss, passed.gradients, without_column=shift.column))
        losses.append(passed.token_loss.double())
        del passed
    difference = (losses[1] - losses[0]).abs()
    # of a mean no more than of a token, whether their errors cancel or not
    loss = difference.max() if case.reduction == "none" else difference.square().mean().sqrt()
    return {"loss": float(loss) / scale} | {
        name: moved
        for name in seen[0].gradients
        if math.isfinite(moved := deviation(seen[1].gradients[name], seen[0].gradients[name]))
    }
