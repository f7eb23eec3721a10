"""What is planted, and what each must get. Names are those of objects in `harness.selftest.planted`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from harness.record import Status
from harness.suite import Suite


class Group(StrEnum):
    """Runs of a selftest: faults that are measured together."""

    TIMED = "timed"  # on a GPU alone: its times and its memory are what is looked at
    JUDGED = "judged"
    HANGING = "hanging"  # apart, with a short patience


@dataclass(frozen=True)
class Fault:
    """One planted implementation. Those with status ok and no words must pass, or the harness cries wolf."""

    name: str
    group: Group
    status: Status
    words: str = ""  # that its reason must contain
    gpu_only: bool = False
    verdict: bool = False  # must be called slower than `right`
    leaks: bool = False  # its memory column must say so

    @property
    def path(self) -> str:
        return f"harness.selftest.planted:{self.name}"


RIGHT = Fault("right", Group.JUDGED, Status.OK)

FAULTS = (
    Fault("right", Group.TIMED, Status.OK, gpu_only=True),
    Fault("slower", Group.TIMED, Status.OK, gpu_only=True, verdict=True),
    Fault("leaky", Group.TIMED, Status.OK, gpu_only=True, leaks=True),
    RIGHT,
    Fault("zero_weight_gradient", Group.JUDGED, Status.DISAGREES, "grad_weight: error 1 "),
    Fault("drops_the_last_tile", Group.JUDGED, Status.DISAGREES, "grad_weight: error"),
    Fault("filters_small_rows", Group.JUDGED, Status.DISAGREES, "the rows of grad_weight should add up to zero"),
    Fault("stale_cache", Group.JUDGED, Status.DISAGREES, "is not of the weights it was given"),
    Fault("loses_the_sign", Group.JUDGED, Status.DISAGREES, "is not linear in the upstream gradient"),
    Fault("forgets_the_maximum", Group.JUDGED, Status.DISAGREES, "when all logits of a token are shifted"),
    Fault("reads_unwritten_memory", Group.JUDGED, Status.DISAGREES, "reads memory that it has not written"),
    Fault("claims_determinism", Group.JUDGED, Status.DISAGREES, "claims to be deterministic"),
    Fault("mutates_its_input", Group.JUDGED, Status.DISAGREES, "the call changed its inputs: input"),
    Fault("accumulates_in_half_precision", Group.JUDGED, Status.DISAGREES, "grad_weight: error"),
    Fault("side_stream", Group.JUDGED, Status.DISAGREES, "after the caller's stream was done", gpu_only=True),
    Fault("out_of_memory", Group.JUDGED, Status.OUT_OF_MEMORY, "memory"),
    Fault("segmentation_fault", Group.JUDGED, Status.CRASHED, "killed by SIGSEGV"),
    Fault("hangs", Group.HANGING, Status.TIMEOUT, "no answer"),
)

# dC is added up in 512 pieces, of 16 tokens or of one; the last tile of 256 classes is ragged everywhere
_TIMED = {"tokens": 8192, "hidden_size": 2048, "vocab_size": 65592, "label_smoothing": 0.1, "inputs": "gaussian"}
_JUDGED: dict[str, dict[str, Any]] = {
    "cuda": {"tokens": 8192, "hidden_size": 1024, "vocab_size": 8200, "label_smoothing": 0.1, "inputs": "gaussian"},
    "cpu": {"tokens": 512, "hidden_size": 48, "vocab_size": 1000, "label_smoothing": 0.1, "inputs": "gaussian"},
}
_PHASES = {Group.TIMED: ["memory", "time", "agreement"], Group.JUDGED: ["agreement"], Group.HANGING: ["agreement"]}
_PATIENCE_S = {Group.TIMED: 300.0, Group.JUDGED: 300.0, Group.HANGING: 30.0}  # opening is a request too


def faults_on(device: str) -> list[Fault]:
    """Those that make sense there."""
    return [fault for fault in FAULTS if device == "cuda" or not fault.gpu_only]


def suite_of(group: Group, device: str) -> Suite:
    """The suite that runs a group's faults beside `right`, which is what they are compared with."""
    planted = [fault for fault in faults_on(device) if fault.group is group]
    names = dict.fromkeys([RIGHT.name, *(fault.name for fault in planted)])
    rows = [{"name": name, "path": f"harness.selftest.planted:{name}"} for name in names]
    return Suite.model_validate(
        {
            "name": f"selftest-{group.value}",
            "description": "implementations that are wrong in one way each",
            "device": device,
            "cases": [_TIMED if group is Group.TIMED else _JUDGED[device]],
            "implementations": rows,
            "reference": RIGHT.name,
            "measurement": {"phases": _PHASES[group], "minimum_rounds": 30, "case_budget_s": 90.0},
            "limits": {"timeout_s": _PATIENCE_S[group]},
        }
    )
