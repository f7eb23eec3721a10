"""What a case must cost whoever computes it: floating-point operations, bytes, and how long a run of it will take."""

from __future__ import annotations

from harness.case import Case


def gemm_flop(case: Case) -> int:
    """Floating-point operations of one (N, D) x (D, V) product; a GEMM in this project is always this product."""
    return 2 * case.tokens * case.hidden_size * case.vocab_size


def logits_bytes(case: Case) -> int:
    """Bytes of the (N, V) logits in the case's dtype: what nobody should have to materialise."""
    return case.tokens * case.vocab_size * case.itemsize


def input_bytes(case: Case) -> int:
    """Bytes of input (N, D), linear_weight (V, D), linear_bias (V,) and the int64 target (N,)."""
    return gradient_floor_bytes(case) + 8 * case.tokens


def gradient_floor_bytes(case: Case) -> int:
    """Bytes of the gradients that a backward must return, (N + V) * D * itemsize, plus the bias's where there is one."""
    bias = case.vocab_size if case.linear_bias else 0
    return ((case.tokens + case.vocab_size) * case.hidden_size + bias) * case.itemsize


def loss_floor_bytes(case: Case) -> int:
    """Bytes of the fp32 loss that a forward must return."""
    return 4 * (case.tokens if case.reduction == "none" else 1)
