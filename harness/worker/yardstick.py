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
from harness.worker.errors import gradient_error, loss_scale
from harness.worker.identities import constant_column, mass, most_shifted, shift_for
from harness.worker.inputs import Tensors
from harness.worker.oracle import Oracle
from harness.worker.sketch import deviation, sketch

ORACLE_SHARE = 0.6  # of the free memory; the rest stays for the gradients that are compared
_MASS_FACTOR = 2.0  # a rest of the gradient's sum beyond this multiple of what right arithmetic leaves is no rounding
_PIECES = 32  # additions of the accumulation in the dtype that is tried: about where bf16 leaves an excess of 4


class MassYardstick(BaseModel):
    """What right arithmetic leaves of norm(sum_v dC_v) / sum_v norm(dC_v)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    eager: float
    independent: float  # what errors of eager's size leave if each is independent
    accumulated: float  # what dC leaves that is added up in the dtype, over pieces of the tokens
    accumulated_excess: float  # that dC's error in units of eager's

    def limit(self, max_excess: float) -> float:
        """What a row whose error may be `max_excess` times eager's may leave; see docs/method.md."""
        added = max(0.0, self.accumulated - self.eager) * max_excess / self.accumulated_excess
        return max(_MASS_FACTOR * (self.eager + added), max(_MASS_FACTOR, max_excess) * self.independent)


class Yardstick(BaseModel):
    """What travels from the referee to the workers, as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    errors: EagerErrors
    diagnostics: Diagnostics | None
    mass: MassYardstick | None  # None where the identity does not hold
    shift: dict[str, float]  # deviations under a shift of loss, grad_input, grad_weight; empty where it does not hold


def yardstick(case: Case, tensors: Tensors, oracle: Oracle, memory_budget_bytes: int) -> Yardstick:
    """Eager arithmetic on `case`, its errors, and how far it breaks the identities."""
    of_mass = case.softcap is None and oracle.weight_rows is None
    passed = eager_pass(case, tensors, oracle.weight_rows, memory_budget_bytes, _PIECES if of_mass else 0)
    errors = errors_of(passed, case, oracle)
    finite = errors.grad_input is not None and errors.grad_weight is not None
    looked = diagnostics(*passed.gradients[:2], oracle, tensors.target) if finite else None
    rest = _mass(case, passed, errors, oracle)
    del passed
    shift = _shift(case, tensors, oracle, memory_budget_bytes) if finite else {}
    return Yardstick(errors=errors, diagnostics=looked, mass=rest, shift=shift)


def _mass(case: Case, passed: EagerPass, errors: EagerErrors, oracle: Oracle) -> MassYardstick | None:
    """None where no row counts, or eager arithmetic is not finite.

    One draw may cancel by chance: with a single token a single rounding decides. dz is rounded once, and rows of dC are
    off by eager's error, each by itself.
    """
    found = mass(passed.gradients.grad_weight) if passed.accumulated is not None else None
    if found is None or errors.grad_weight is None or passed.accumulated is None:
        return None
    rest, norm_sum, norm = found
    floor = rounding_floor(case.dtype)
    usual = max(floor, errors.grad_weight)
    accumulated, error = mass(passed.accumulated), gradient_error(passed.accumulated, oracle.grad_weight).whole
    if accumulated is None or error is None or not math.isfinite(error):
        return None
    return MassYardstick(
        eager=rest / norm_sum,
        independent=math.hypot(floor * math.sqrt(passed.rounding_energy), usual * norm) / norm_sum,
        accumulated=accumulated[0] / accumulated[1],
        accumulated_excess=max(floor, error) / usual,
    )


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
