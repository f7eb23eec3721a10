"""Eager arithmetic: the error that torch's own two lines make in the case's dtype, against which others are judged.

The two lines are F.cross_entropy(softcap(F.linear(input, linear_weight, linear_bias)).float(), target). Step by step,
in the dtype where nothing else is said: logits accumulated in fp32 and rounded; softcap * tanh(z / softcap), every
operation rounded; log-softmax and loss in fp32; dz in fp32, rounded; the softcap's backward, every operation rounded;
the products for the gradients accumulated in fp32 and rounded once. Computed by chunks of tokens, so that it exists
where the (N, V) logits do not fit; grad_weight is summed over them in fp32.

The sum over V for grad_input is one GEMM wherever nothing is converted, as it is in eager: in fp32 its error is the
order of that sum. Where all rows of linear_weight share a direction, cuBLAS's one pass over V = 256000 is off by 1.3e-4
and the same sum in slices by 1.2e-5 (H200, zipf-medium): slices would hold fp32 eager itself to a tenth of its error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from harness.case import Case
from harness.worker.errors import gradient_error, loss_scale
from harness.worker.inputs import IGNORE_INDEX, Tensors
from harness.worker.oracle import Oracle, chunk_tokens, token_gradients
from harness.worker.products import SLICE_BYTES, converts, logits, product, slices, without_tf32

_FP32 = 4  # bytes
# in fp32 a chunk must be large enough that its GEMMs run in the kernels of the whole; see above
_MOST_TOKENS = {torch.bfloat16: 512, torch.float16: 512, torch.float32: 2048}


class Gradients(NamedTuple):
    """In the case's dtype. R rows of linear_weight: all V, or those asked for."""

    grad_input: Tensor  # (N, D)
    grad_weight: Tensor  # (R, D)
    grad_bias: Tensor | None  # (V,)


class EagerPass(NamedTuple):
    """What eager arithmetic computes for a case."""

    gradients: Gradients
    token_loss: Tensor  # (N,) in fp32, 0 where ignored
    accumulated: Tensor | None  # grad_weight once more, added up in the dtype piece by piece of the tokens
    rounding_energy: float  # sum_n norm(input_n)**2 norm(dz_n)**2: what independent roundings of dz leave in sum_v dC_v


@dataclass(frozen=True)
class EagerErrors:
    """Scale-free errors of eager arithmetic; None where the quantity does not exist or is not finite."""

    grad_input: float | None
    grad_weight: float | None
    grad_bias: float | None = None
    loss: float | None = None  # in units of `loss_scale`
    sampled: bool = False  # whether grad_weight's error is that of sampled rows


def eager_gradients(case: Case, tensors: Tensors, weight_rows: Tensor | None, memory_budget_bytes: int) -> Gradients:
    """Gradients of eager arithmetic; of grad_weight only `weight_rows` (R,) where given."""
    return eager_pass(case, tensors, weight_rows, memory_budget_bytes).gradients


def eager_errors(case: Case, tensors: Tensors, oracle: Oracle, memory_budget_bytes: int) -> EagerErrors:
    """How far eager arithmetic is from the oracle, on the rows that the oracle covers."""
    return errors_of(eager_pass(case, tensors, oracle.weight_rows, memory_budget_bytes), case, oracle)


def errors_of(passed: EagerPass, case: Case, oracle: Oracle) -> EagerErrors:
    """How far a pass over the oracle's rows is from the oracle.

    The loss error of one draw may cancel by chance; so it is at least what independent errors of its size per token
    would add up to, the norm of the tokens' errors. For reduction none it is the largest token's.
    """
    gradients, token_loss = passed.gradients, passed.token_loss
    scale = loss_scale(case, oracle)
    difference = token_loss.double() - oracle.token_loss
    if case.reduction == "none":
        loss_error = float(difference.abs().max())
    else:
        loss_error = max(float(difference.sum().abs()), float(torch.linalg.vector_norm(difference)))
        loss_error /= oracle.counted_rows if case.reduction == "mean" and oracle.counted_rows else 1
    bias, true_bias = gradients.grad_bias, oracle.grad_bias
    return EagerErrors(
        grad_input=_finite(gradient_error(gradients.grad_input, oracle.grad_input).whole),
        grad_weight=_finite(gradient_error(gradients.grad_weight, oracle.grad_weight).whole),
        grad_bias=None
        if bias is None or true_bias is None
        else _finite(gradient_error(bias[None], true_bias[None]).whole),
        loss=_finite(loss_error / scale) if scale else None,
        sampled=oracle.weight_rows is not None,
    )


def _finite(error: float | None) -> float | None:
    return error if error is not None and error < float("inf") else None  # nan compares false


def most_tokens(dtype: torch.dtype) -> int:
    """Tokens of the largest chunk."""
    return _MOST_TOKENS[dtype]


@torch.no_grad()
def eager_pass(
    case: Case, tensors: Tensors, weight_rows: Tensor | None, memory_budget_bytes: int, pieces: int = 0
) -> EagerPass:
    """Eager arithmetic's gradients and losses; of grad_weight only `weight_rows` (R,) where given.

    `pieces`: of how many additions in the dtype `accumulated` is made, about, and no fewer than there are chunks; it is
    None for 0.
    """
    device, dtype = tensors.input.device, tensors.input.dtype
    tokens, hidden_size, vocab_size = case.tokens, case.hidden_size, case.vocab_size
    rows = vocab_size if weight_rows is None else weight_rows.numel()
    fixed_bytes = (_FP32 + case.itemsize) * (rows + 2 * tokens) * hidden_size + 2 * SLICE_BYTES
    token_bytes = (3 * _FP32 + 3 * case.itemsize) * vocab_size + 4 * _FP32 * hidden_size
    fixed_bytes += case.itemsize * rows * hidden_size if pieces else 0
    step = chunk_tokens(tokens, _MOST_TOKENS[dtype], memory_budget_bytes - fixed_bytes, token_bytes)
    piece = math.ceil(step / math.ceil(min(pieces, tokens) * step / tokens)) if pieces else 0

    grad_input = torch.empty_like(tensors.input)
    accumulated = torch.zeros(rows, hidden_size, dtype=dtype, device=device) if pieces else None
    grad_weight = torch.zeros(rows, hidden_size, dtype=torch.float32, device=device)
    grad_bias = torch.zeros(vocab_size, dtype=torch.float32, device=device)
    token_loss = torch.empty(tokens, dtype=torch.float32, device=device)
    energy = torch.zeros((), dtype=torch.float64, device=device)
    upstream = token_gradients(case, tensors, torch.float32)
    whole = [slice(0, vocab_size)]
    vocabulary = slices(vocab_size, _FP32 * hidden_size) if converts(tensors.linear_weight, torch.float32) else whole
    with without_tf32():
        for start in range(0, tokens, step):
            chunk = slice(start, min(start + step, tokens))
            token_loss[chunk], dz = _chunk(case, tensors, chunk, upstream[chunk])
            rounded_input = tensors.input[chunk]
            input_norm, dz_norm = (torch.linalg.vector_norm(t, dim=1, dtype=torch.float32) for t in (rounded_input, dz))
            energy += (input_norm.double() * dz_norm).square().sum()
            rows_of_input = torch.zeros(rounded_input.shape, dtype=torch.float32, device=device)
            for part in vocabulary:
                rows_of_input += product(dz[:, part], tensors.linear_weight[part], torch.float32)
            grad_input[chunk] = rows_of_input.to(dtype)
            wanted = dz if weight_rows is None else dz[:, weight_rows]
            for part in slices(rows, _FP32 * hidden_size):
                grad_weight[part] += product(wanted[:, part].T, rounded_input, torch.float32)
            if accumulated is not None:
                _add_up(accumulated, wanted, rounded_input, piece)
            if case.linear_bias:
                grad_bias += dz.sum(0, dtype=torch.float32)
            del dz, wanted
    rounded_bias = grad_bias.to(dtype) if case.linear_bias else None
    gradients = Gradients(grad_input, grad_weight.to(dtype), rounded_bias)
    return EagerPass(gradients, token_loss, accumulated, float(energy))


def _add_up(accumulated: Tensor, dz: Tensor, input: Tensor, piece: int) -> None:
    """Adds dz (n, R) transposed @ input (n, D) to (R, D) in its dtype, `piece` tokens at a time, each sum rounded."""
    for some in slices(input.shape[0], 1, piece):
        for part in slices(accumulated.shape[0], _FP32 * input.shape[1]):
            accumulated[part] += product(dz[some, part].T, input[some], torch.float32).to(accumulated.dtype)


def _chunk(case: Case, tensors: Tensors, chunk: slice, upstream: Tensor) -> tuple[Tensor, Tensor]:
    """Loss (n,) in fp32 and dz (n, V) in the dtype, of a chunk of n tokens."""
    dtype = tensors.input.dtype
    target = tensors.target[chunk]
    column = target.clamp(min=0)[:, None]
    z = logits(tensors.input[chunk], tensors.linear_weight, tensors.linear_bias, torch.float32).to(dtype)
    tanh = None
    if case.softcap is not None:
        tanh = torch.tanh(z / case.softcap)
        z = case.softcap * tanh
    log_p = z.float().log_softmax(1)
    del z
    beta = case.label_smoothing
    loss = -(1 - beta) * log_p.gather(1, column)[:, 0]
    if beta:
        loss -= beta / case.vocab_size * log_p.sum(1)
    loss.masked_fill_(target == IGNORE_INDEX, 0.0)
    # as autograd has it: the gradient of log_p, then log-softmax's own backward, which sums it
    grad = (-beta / case.vocab_size * upstream)[:, None].expand(log_p.shape).contiguous()
    grad.scatter_add_(1, column, (-(1 - beta) * upstream)[:, None])
    dz = torch.ops.aten._log_softmax_backward_data(grad, log_p, 1, torch.float32)
    del grad, log_p
    dz = dz.to(dtype)
    if tanh is not None and case.softcap is not None:
        dz = torch.ops.aten.tanh_backward(dz * case.softcap, tanh) / case.softcap
    return loss, dz
