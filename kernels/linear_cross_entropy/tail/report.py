"""What a backward tells of itself: one row of fp64 numbers on the host, and names for them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from kernels.linear_cross_entropy.tail.gradients import TailStats

FIELDS = (
    "dense", "active_fraction", "padded_fraction", "modelled_mass", "expected_input_error", "expected_weight_error",
    "input_bound", "weight_estimate", "arithmetic_error",
)  # fmt: skip
REPORT_LENGTH = len(FIELDS)


@dataclass(frozen=True)
class GradientStats:
    """Filled in by the backward; every number is nan before, and those of modelling after the dense path.

    path: "corrected", "dense" or "not run". Fractions are of all (token, vocabulary tile) pairs: computed, and with
    lists rounded up to blocks. modelled_mass: of the probability, in pairs that are not computed. Errors are relative
    to the norm of the gradient and of the method alone: expected_* is what the routing counted on, input_bound an upper
    bound for dE that holds with probability 0.999, weight_estimate an estimate for dC. arithmetic_error is what
    rounding adds to dE.
    """

    report: Tensor  # (REPORT_LENGTH,) fp64 on the host

    @staticmethod
    def empty() -> "GradientStats":
        return GradientStats(torch.full((REPORT_LENGTH,), float("nan"), dtype=torch.float64))

    @property
    def path(self) -> str:
        dense = float(self.report[0])
        return "not run" if dense != dense else ("dense" if dense else "corrected")  # noqa: PLR0124 - nan

    def __getattr__(self, name: str) -> float:
        if name not in FIELDS:
            raise AttributeError(name)
        return float(self.report[FIELDS.index(name)])

    def __repr__(self) -> str:
        numbers = ", ".join(f"{name}={getattr(self, name):.3g}" for name in FIELDS[1:])
        return f"GradientStats(path={self.path!r}, {numbers})"


def make_report(stats: "TailStats") -> Tensor:  # (REPORT_LENGTH,) fp64
    """The numbers of FIELDS; reads the device."""
    routing, found = stats.routing, stats.certificate
    T, N = routing.tail.shape
    numbers = [float(stats.dense), int(routing.counts.sum()) / (T * N), stats.padded_fraction]
    numbers.append(stats.modelled_mass)
    if not stats.dense:
        numbers += routing.expected_errors.tolist()
        if found is not None:
            numbers += [found.input_bound, found.weight_estimate, found.arithmetic_error]
    return torch.tensor(numbers + [float("nan")] * (REPORT_LENGTH - len(numbers)), dtype=torch.float64)
