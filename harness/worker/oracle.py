"""The truth: loss and gradients in float64, on the same rounded inputs that the implementations see.

    z = input @ linear_weight.T (+ bias), s = softcap * tanh(z / softcap)
    L_n = lse(s_n) - (1 - beta) s_ny - (beta / V) sum_v s_nv
    dz_nv = g_n (softmax(s_n)_v - (1 - beta) [v = y] - beta / V) / cosh(z_nv / softcap)**2
    grad_input = dz @ linear_weight, grad_weight = dz.T @ input, grad_bias = sum_n dz_n

g_n is the upstream gradient, divided by the number of rows that count for reduction mean; 0 where a row is ignored.
Computed by chunks of tokens, with linear_weight converted to float64 slice by slice: three GEMMs in float64, and
nothing of size (N, V) or, beside grad_weight itself, (V, D) in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.case import Case
from harness.worker.inputs import IGNORE_INDEX, Tensors
from harness.worker.products import SLICE_BYTES, logits, slices

_MOST_TOKENS = 512  # of a chunk: more makes no GEMM faster
_FEW_TOKENS = 64  # a chunk below this crawls: rather sample rows of grad_weight
_TILE = 256  # the widest vocabulary tile of published kernels
_FP64 = 8  # bytes


class DoesNotFit(ValueError):
    """There is not memory enough for the truth: nothing is wrong with what was to be judged by it."""


@dataclass(frozen=True)
class Oracle:
    """Loss and gradients in float64. N tokens, R rows of linear_weight covered, V vocabulary size, D hidden size."""

    loss: Tensor  # a scalar, or (N,) for reduction none; nan for mean where no row counts
    token_loss: Tensor  # (N,), before any reduction; 0 where ignored
    mean_abs_lse: float  # over the rows that count; 0.0 if there are none
    counted_rows: int
    grad_input: Tensor  # (N, D)
    grad_weight: Tensor  # (R, D)
    weight_rows: Tensor | None  # (R,) int64, ascending: which rows of linear_weight; None: all of them, R = V
    grad_bias: Tensor | None  # (V,), always whole


def token_gradients(case: Case, tensors: Tensors, dtype: torch.dtype) -> Tensor:
    """(N,) g_n: what the loss of each token is multiplied by in the backward."""
    counts = tensors.target != IGNORE_INDEX
    upstream = tensors.upstream.to(dtype)
    if case.reduction == "mean":
        upstream = upstream / counts.sum()
    return torch.where(counts, upstream, torch.zeros((), dtype=dtype, device=counts.device))


def chunk_tokens(tokens: int, most: int, available_bytes: int, token_bytes: int) -> int:
    """Tokens of a chunk: what fits, at most `most`, at least one."""
    return max(1, min(tokens, most, available_bytes // token_bytes))


@torch.no_grad()
def oracle(case: Case, tensors: Tensors, memory_budget_bytes: int, sampled: bool | None = None) -> Oracle:
    """The truth about `case`, allocating at most `memory_budget_bytes` beyond what is live, its result included.

    grad_weight is whole where it fits, V * D * 8 bytes beside a chunk of tokens; else about 2048 chosen rows of it, see
    `sampled_rows`. Everything else is always whole. `sampled` overrides this choice, so that all who are compared cover
    the same rows. Raises DoesNotFit.
    """
    device = tensors.input.device
    tokens, hidden_size, vocab_size = case.tokens, case.hidden_size, case.vocab_size
    slice_tokens_bytes = _FP64 * min(vocab_size, max(1, SLICE_BYTES // (_FP64 * hidden_size)))
    token_bytes = _FP64 * (vocab_size * (1 if case.softcap is None else 2) + 4 * hidden_size) + slice_tokens_bytes
    fixed_bytes = _FP64 * (tokens * (hidden_size + 4) + 4 * vocab_size)
    fixed_bytes += min(SLICE_BYTES, _FP64 * vocab_size * hidden_size)
    whole_bytes = fixed_bytes + _FP64 * vocab_size * hidden_size
    weight_rows = None
    if sampled is None:
        sampled = whole_bytes + min(tokens, _FEW_TOKENS) * token_bytes > memory_budget_bytes
    if sampled:
        weight_rows = sampled_rows(tensors)
        whole_bytes = fixed_bytes + _FP64 * weight_rows.numel() * hidden_size
    if whole_bytes + token_bytes > memory_budget_bytes:
        raise DoesNotFit(
            f"memory_budget_bytes is {memory_budget_bytes}; the oracle of N {tokens}, D {hidden_size}, V {vocab_size} "
            f"needs at least {whole_bytes + token_bytes}"
        )
    step = chunk_tokens(tokens, _MOST_TOKENS, memory_budget_bytes - whole_bytes, token_bytes)

    rows = vocab_size if weight_rows is None else weight_rows.numel()
    grad_input = torch.zeros(tokens, hidden_size, dtype=torch.float64, device=device)
    grad_weight = torch.zeros(rows, hidden_size, dtype=torch.float64, device=device)
    grad_bias = torch.zeros(vocab_size, dtype=torch.float64, device=device)
    token_loss = torch.zeros(tokens, dtype=torch.float64, device=device)
    all_lse = torch.zeros(tokens, dtype=torch.float64, device=device)
    upstream = token_gradients(case, tensors, torch.float64)
    vocabulary = slices(vocab_size, _FP64 * hidden_size)
    for start in range(0, tokens, step):
        chunk = slice(start, min(start + step, tokens))
        token_loss[chunk], all_lse[chunk], dz = _chunk(case, tensors, chunk, upstream[chunk])
        input = tensors.input[chunk].double()
        for part in vocabulary:
            grad_input[chunk].addmm_(dz[:, part], tensors.linear_weight[part].double())
            if weight_rows is None:
                grad_weight[part].addmm_(dz[:, part].T, input)
        if weight_rows is not None:
            grad_weight.addmm_(dz[:, weight_rows].T, input)
        if case.linear_bias:
            grad_bias += dz.sum(0)
        del dz

    counts = tensors.target != IGNORE_INDEX
    counted_rows = int(counts.sum())
    loss = token_loss
    if case.reduction != "none":
        loss = token_loss.sum() if case.reduction == "sum" else token_loss.sum() / counts.sum()
    return Oracle(
        loss=loss,
        token_loss=token_loss,
        mean_abs_lse=float(all_lse[counts].abs().mean()) if counted_rows else 0.0,
        counted_rows=counted_rows,
        grad_input=grad_input,
        grad_weight=grad_weight,
        weight_rows=weight_rows,
        grad_bias=grad_bias if case.linear_bias else None,
    )


def _chunk(case: Case, tensors: Tensors, chunk: slice, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss (n,), lse (n,) and dz (n, V) of a chunk of n tokens; one (n, V) tensor, two with a softcap."""
    target = tensors.target[chunk]
    counts = target != IGNORE_INDEX
    column = target.clamp(min=0)[:, None]
    z = logits(tensors.input[chunk], tensors.linear_weight, tensors.linear_bias, torch.float64)
    slope = None
    if case.softcap is not None:
        z /= case.softcap
        slope = z.cosh().pow_(-2)  # not 1 - tanh**2, which cancels where the softcap saturates
        z.tanh_().mul_(case.softcap)
    z_target = z.gather(1, column)[:, 0]
    z_mean = z.mean(1)
    top = z.amax(1)
    p = z.sub_(top[:, None]).exp_()  # z is gone
    total = p.sum(1)
    lse = top + total.log()
    beta = case.label_smoothing
    loss = torch.where(counts, lse - (1 - beta) * z_target - beta * z_mean, 0.0)
    dz = p.mul_((upstream / total)[:, None])
    dz.scatter_add_(1, column, (-(1 - beta) * upstream)[:, None])
    if beta:
        dz -= (beta / case.vocab_size * upstream)[:, None]
    return loss, lse, dz if slope is None else dz.mul_(slope)


def sampled_rows(tensors: Tensors, count: int = 2048) -> Tensor:
    """(R,) int64, ascending: about `count` rows of linear_weight that stand for all, the same on every call.

    Three eighths targets, those of most tokens first; a quarter the likeliest rows, by their average logit; an eighth
    the least likely; an eighth spread evenly over the rows that are never a target; and the last tile of 256, which
    kernels mask where V is no multiple of it.
    """
    vocab_size = tensors.linear_weight.shape[0]
    device = tensors.linear_weight.device
    targets = tensors.target[tensors.target != IGNORE_INDEX]
    occurrences = torch.bincount(targets.cpu(), minlength=vocab_size)
    mean_logit = logits(tensors.input.float().mean(0, keepdim=True), tensors.linear_weight, None, torch.float64)[
        0
    ].cpu()
    if tensors.linear_bias is not None:
        mean_logit += tensors.linear_bias.cpu()
    by_logit = mean_logit.argsort(descending=True, stable=True)
    seen = occurrences.argsort(descending=True, stable=True)[: int((occurrences > 0).sum())]
    unseen = (occurrences == 0).nonzero()[:, 0]
    spread = unseen[torch.linspace(0, max(0, unseen.numel() - 1), min(count // 8, unseen.numel())).long()]
    last_tile = torch.arange((vocab_size - 1) // _TILE * _TILE, vocab_size)
    chosen = [seen[: 3 * count // 8], by_logit[: count // 4], by_logit[-(count // 8) :], spread, last_tile]
    sampled = torch.zeros(vocab_size, dtype=torch.bool)
    sampled[torch.cat(chosen)] = True
    return sampled.nonzero()[:, 0].to(device)
