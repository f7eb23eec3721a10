"""The agreement phase of one implementation: its calls, then the oracle, then what all of it says.

The judged call comes last, on poisoned memory; before it come others (`harness.worker.other_calls`), whose sketches are
held against each other and are gone before the oracle comes. A limit of an identity follows from that of the errors:
two gradients, each off by an error of its own that is within `max_excess` times eager's, differ by the square root of
two times that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

from torch import Tensor

from harness.checks import Check, Checks, Diagnostics
from harness.cost import gradient_floor_bytes
from harness.record import Agreement
from harness.worker.agreement import agree, rounding_floor
from harness.worker.call import Call
from harness.worker.device import free_bytes, release_cached_memory
from harness.worker.diagnostics import diagnostics
from harness.worker.differences import Differences, Moved, differences
from harness.worker.errors import loss_scale
from harness.worker.identities import mass
from harness.worker.inputs import Tensors, digests, draw
from harness.worker.oracle import oracle
from harness.worker.other_calls import probe, run, straggles, straggling_ms
from harness.worker.poison import ZeroedMemory, live_bytes, peak_bytes, poisoned_memory
from harness.worker.sketch import Sketch, sketch
from harness.worker.yardstick import ORACLE_SHARE, Yardstick

_Compared = tuple[str, float, float]  # (tensor, deviation, limit)


@dataclass(frozen=True)
class _Judged:
    """The call that is held against the oracle, and what was found on the way to it."""

    no_grad_loss: Tensor
    loss: Tensor
    gradients: list[Tensor | None]
    finite: bool  # whether its gradients are
    moved: Differences | None  # None where the first call had changed its inputs: nothing else means anything then
    changed: list[str]  # names of tensors
    reads_unwritten: bool
    poisoned_bytes: int | None
    left_ms: float | None


def judge(
    call: Call, intact: dict[str, str], claims_determinism: bool, measured_by: Yardstick, max_excess: float
) -> Agreement:
    """Judges `call`, whose tensors must have the digests `intact`; they are what they were afterwards."""
    tensors, device = call.tensors, call.tensors.input.device
    judged = _calls(call, intact)
    for tensor in call.differentiated:
        tensor.requires_grad_(False)
    release_cached_memory(device)
    inputs = draw(call.case, device) if judged.changed else tensors
    found = mass(judged.gradients[1]) if judged.gradients[1] is not None else None
    truth = oracle(call.case, inputs, int(ORACLE_SHARE * free_bytes(device)), sampled=measured_by.errors.sampled)
    grad_input, grad_weight, grad_bias = (*judged.gradients, None)[:3]
    agreement = agree(
        call.case,
        judged.loss,
        (grad_input, grad_weight, grad_bias),
        truth,
        measured_by.errors,
        max_excess,
        judged.no_grad_loss,
    )
    limits = _Limits(call, measured_by, max_excess, agreement.loss_limit, loss_scale(call.case, truth))
    checks = limits.checks(judged, claims_determinism, found)
    comparable = agreement.grad_input_error is not None and agreement.grad_weight_error is not None
    looked = None
    if comparable and grad_input is not None and grad_weight is not None:
        looked = diagnostics(grad_input, grad_weight, truth, inputs.target)
    failures = [
        *_causes(judged, claims_determinism, checks),
        *agreement.failures,
        *_missing(looked, measured_by.diagnostics),
        *(_broken(checks) if judged.finite else []),
    ]
    return agreement.model_copy(
        update={
            "diagnostics": looked,
            "eager_diagnostics": measured_by.diagnostics,
            "checks": checks,
            "failures": failures,
        }
    )


def _calls(call: Call, intact: dict[str, str]) -> _Judged:
    tensors, device = call.tensors, call.tensors.input.device
    first, needed_bytes = _first(call)
    changed = _changed(tensors, intact)
    if changed:
        no_grad_loss = call.forward_no_grad()
        loss, gradients = run(call)
        call.clear_gradients()
        return _Judged(no_grad_loss, loss, gradients, first.finite(), None, changed, False, 0, None)
    probes = probe(call, first, needed_bytes)
    left_ms = straggling_ms(call)
    with poisoned_memory(device, needed_bytes):
        no_grad_loss = call.forward_no_grad()
    with poisoned_memory(device, needed_bytes) as poisoned_bytes:
        loss, gradients = run(call)
    seen = sketch(loss, gradients)
    reads_unwritten = False
    if not seen.finite():
        del gradients
        with ZeroedMemory():  # type: ignore[no-untyped-call]
            reads_unwritten = sketch(*run(call)).finite()
        with poisoned_memory(device, needed_bytes):
            loss, gradients = run(call)
    call.clear_gradients()
    changed = _changed(tensors, intact)
    moved, finite = differences(seen, probes), seen.finite()
    return _Judged(no_grad_loss, loss, gradients, finite, moved, changed, reads_unwritten, poisoned_bytes, left_ms)


def _first(call: Call) -> tuple[Sketch, int]:
    """A call on the tensors as they are, and the bytes that it needed; without a GPU on poisoned memory as all are."""
    device = call.tensors.input.device
    call.clear_gradients()  # of whoever called before: what is live now is not poisoned
    live = live_bytes(device)
    with nullcontext() if device.type == "cuda" else poisoned_memory(device, 0):
        loss, gradients = run(call)
    needed_bytes = max(peak_bytes(device, live), gradient_floor_bytes(call.case))
    seen = sketch(loss, gradients)
    call.clear_gradients()
    return seen, needed_bytes


def _changed(tensors: Tensors, intact: dict[str, str]) -> list[str]:
    now = digests(tensors)
    return [name for name, digest in intact.items() if now[name] != digest]


class _Limits:
    """What each check may deviate by, for one case."""

    def __init__(
        self, call: Call, measured_by: Yardstick, max_excess: float, loss_limit: float, loss_scale: float
    ) -> None:
        floor, errors = rounding_floor(call.case.dtype), measured_by.errors
        known = {"grad_input": errors.grad_input, "grad_weight": errors.grad_weight, "grad_bias": errors.grad_bias}
        self.eager = {name: math.sqrt(2) * max(error, floor) for name, error in known.items() if error is not None}
        self.measured_by, self.max_excess = measured_by, max_excess
        self.loss_limit, self.loss_scale = loss_limit, loss_scale

    def checks(self, judged: _Judged, claims_determinism: bool, found: tuple[float, float, float] | None) -> Checks:
        moved, rest = judged.moved, None
        if found is not None and self.measured_by.mass is not None:
            rest = _worst([("grad_weight", found[0] / found[1], self.measured_by.mass.limit(self.max_excess))])
        if moved is None:
            return Checks(mass=rest, claims_determinism=claims_determinism)
        return Checks(
            mass=rest,
            linearity=_worst(self._compared(moved.linearity)),
            permutation=_worst(self._compared(moved.permutation)),
            shift=_worst(self._compared(moved.shift, self.measured_by.shift)) if self.measured_by.shift else None,
            repeat=_worst(self._compared(moved.repeat)),
            repeats_bitwise=moved.repeats_bitwise,
            claims_determinism=claims_determinism,
            poisoned_bytes=judged.poisoned_bytes,
            straggling_ms=judged.left_ms,
        )

    def _compared(self, moved: Moved, eager: Mapping[str, float] | None = None) -> Iterator[_Compared]:
        """With the limit of each; `eager`: what eager's own move by."""
        for name, by in moved:
            least = self.max_excess * (eager or {}).get(name, 0.0)
            if name in self.eager:
                yield name, by, max(self.max_excess * self.eager[name], least)
            elif name == "loss" and self.loss_scale:
                yield name, by / self.loss_scale, max(2 * self.loss_limit, least)


def _worst(compared: Iterable[_Compared]) -> Check | None:
    items = list(compared)
    if not items:
        return None
    of, moved, limit = max(items, key=lambda item: item[1] / item[2])
    return Check(of=of, deviation=moved if math.isfinite(moved) else None, limit=limit)


def _causes(judged: _Judged, claims_determinism: bool, checks: Checks) -> list[str]:
    """What would explain a wrong number, in words; first among the failures."""
    causes = []
    if judged.changed:
        causes.append(f"the call changed its inputs: {', '.join(judged.changed)}")
    if judged.reads_unwritten:
        causes.append("reads memory that it has not written: its gradients are finite only where that held no nan")
    if claims_determinism and checks.repeats_bitwise is False:
        differing = ", ".join(judged.moved.differing) if judged.moved is not None else ""
        causes.append(f"claims to be deterministic, but two calls differ in {differing}")
    if straggles(judged.left_ms):
        causes.append(
            f"work went on for {judged.left_ms:.3g} ms after the caller's stream was done: on a stream that nobody "
            "waits for, so that neither its time nor its gradients can be trusted"
        )
    return causes


def _missing(looked: Diagnostics | None, eager: Diagnostics | None) -> list[str]:
    """Rows that were forgotten, in words."""
    failures = []
    for name in ("grad_input", "grad_weight"):
        found, usual = (getattr(d, f"{name}_missing_rows") if d is not None else 0 for d in (looked, eager))
        if found > usual:
            failures.append(f"{name}: {found} rows are all zero where the true gradient is not (eager's: {usual})")
    return failures


_MEANING = {
    "mass": "the rows of {of} should add up to zero",
    "linearity": "{of} is not linear in the upstream gradient",
    "permutation": "{of} depends on the order of the vocabulary, or is not of the weights it was given",
    "shift": "{of} changes when all logits of a token are shifted",
    "repeat": "{of} differs from one call to the next",
}


def _broken(checks: Checks) -> list[str]:
    failures = []
    for name, meaning in _MEANING.items():
        check: Check | None = getattr(checks, name)
        if check is not None and (check.deviation is None or check.deviation > check.limit):
            size = "not finite" if check.deviation is None else f"{check.deviation:.2g}"
            failures.append(f"{meaning.format(of=check.of)}: {size} (limit {check.limit:.2g})")
    return failures
