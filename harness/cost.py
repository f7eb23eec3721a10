"""What a case must cost whoever computes it: floating-point operations, bytes, and how long a run of it will take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.case import Case


def gemm_flop(case: Case, tokens: int | None = None) -> int:
    """Floating-point operations of one (N, D) x (D, V) product; a GEMM in this project is always this product.

    `tokens`: of how many, where not of all N.
    """
    return 2 * (case.tokens if tokens is None else tokens) * case.hidden_size * case.vocab_size


def counted_tokens(case: Case, statistics: Mapping[str, Any]) -> int:
    """Tokens whose target is not ignored: who leaves the others out computes all there is to compute.

    As the referee counted them (a record's input statistics), for the targets of a file may hold ignored ones of their
    own; where it did not, as many as the case leaves.
    """
    counted = statistics.get("counted_rows")
    return int(counted) if counted is not None else case.tokens - round(case.ignored_fraction * case.tokens)


FORWARD_GEMMS = 1  # the logits
FORWARD_BACKWARD_GEMMS = 3  # and the two gradients' products


def forward_bytes(case: Case, counted: int) -> int:
    """Bytes that a forward cannot help to move: it reads its inputs and writes its loss, each once.

    Of the input it needs the `counted` tokens' rows, and neither weights nor bias where no token counts.
    """
    ignored = (case.tokens - counted) * case.hidden_size * case.itemsize
    read = input_bytes(case) - ignored if counted else 8 * case.tokens
    return read + loss_floor_bytes(case)


def forward_backward_bytes(case: Case, counted: int) -> int:
    """Bytes that forward and backward together cannot help to move: inputs, loss and gradients, each once."""
    return forward_bytes(case, counted) + gradient_floor_bytes(case)


def logits_bytes(case: Case) -> int:
    """Bytes of the (N, V) logits in the case's dtype: what nobody should have to materialise."""
    return case.tokens * case.vocab_size * case.itemsize


def input_bytes(case: Case) -> int:
    """Bytes of input (N, D), linear_weight (V, D), linear_bias (V,) and the int64 target (N,)."""
    return gradient_floor_bytes(case) + 8 * case.tokens


def gradient_floor_bytes(case: Case) -> int:
    """Bytes of the gradients that a backward must return: (N + V) * D * itemsize, and the bias's where it has one."""
    bias = case.vocab_size if case.linear_bias else 0
    return ((case.tokens + case.vocab_size) * case.hidden_size + bias) * case.itemsize


def loss_floor_bytes(case: Case) -> int:
    """Bytes of the fp32 loss that a forward must return."""
    return 4 * (case.tokens if case.reduction == "none" else 1)


# A plan's guesses, until the run's own durations replace them; seconds, on an H200 machine and on two CPU cores.
_START_S = {"cuda": 20.0, "cpu": 12.0}  # processes, importing torch, drawing the inputs; all workers at once
_WORKER_S = {"cuda": 4.0, "cpu": 5.0}  # settling, memory and agreement of one implementation
_FLOP_PER_S = {"cuda": 6e14, "cpu": 2e10}
_GEMMS_PER_SAMPLE = 6  # a no-grad forward and a forward + backward of a middling implementation


def estimated_seconds(case: Case, workers: int, calls: int, device: str) -> float:
    """A guess of how long a case takes: `workers` implementations, each called `calls` times."""
    sampling = workers * calls * _GEMMS_PER_SAMPLE * gemm_flop(case) / _FLOP_PER_S[device]
    return _START_S[device] + workers * _WORKER_S[device] + sampling
