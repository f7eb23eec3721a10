"""Entropies of a head's predictions against the lower bounds that the sizes of its logits allow.

What is sigma? In Lemma 4.1 sigma_C is the spectral norm of C and sigma_h bounds every |h_i|; they stand only for the
norm of the logits, ||C h|| <= sigma_C ||h|| <= sigma_C sigma_h sqrt(D). So there is a chain, each entropy bound
looser than the one before, for u = (C h + b) / T or, with a softcap, the capped logits:

    entropy >= bound(||u - mean(u) 1||)                 logits of this token, centred: the tightest
            >= bound(||u||)                             as they are; a common offset counts although softmax ignores it
            >= bound((sigma_C ||h|| + ||b||) / T)       the head's spectral norm and this token's h
            >= bound((sigma_C sigma_h sqrt(D) + ||b||) / T)   Theorem 4.2, sigma_h the largest |h_i| of all tokens

If the rows of C share a direction, as trained heads' do, centring matters: u - mean(u) 1 = (C - 1 c^T) h + (b - mean
b) with c the mean row, so the spectral norm of C - 1 c^T may stand in place of sigma_C, and bounds the first line
from below too. A softcap keeps the whole chain: tanh's slope is at most 1, so neither norm, ||u|| or that of the
centred u, can grow. Rounding to fp32 may put an entropy below its bound by about 1e-6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.calibration.entropy_bound import entropy_lower_bound
from harness.calibration.head import CHUNK_BYTES, Head, scaled_logits, token_chunks
from harness.worker.products import slices, without_tf32


@dataclass(frozen=True)
class HeadScale:
    """Sizes of a head and of the hidden states it is applied to, before any softcap or temperature."""

    sigma_c: float  # spectral norm of C
    centred_sigma_c: float  # spectral norm of C less its mean row
    bias_norm: float  # ||b||, 0 without one
    centred_bias_norm: float
    sigma_h: float  # the largest |h_i| of all tokens
    hidden_norm_rms: float  # root mean square of ||h|| over tokens
    hidden_size: int


@dataclass(frozen=True, eq=False)
class MeasuredEntropy:
    """Per token, N of them, fp64; the bounds in the order of the chain."""

    entropy_nats: Tensor  # (N,)
    centred_logit_norm: Tensor  # (N,)
    logit_norm: Tensor  # (N,)
    centred_logit_bound_nats: Tensor  # (N,)
    logit_bound_nats: Tensor  # (N,)
    centred_head_bound_nats: Tensor  # (N,) of (centred_sigma_c ||h|| + centred_bias_norm) / T: below the first bound
    head_bound_nats: Tensor  # (N,)
    theorem_bound_nats: float
    maximum_nats: float  # log V
    scale: HeadScale


@torch.no_grad()
def measured_entropy(
    hidden: Tensor, head: Head, *, chunk_bytes: int = CHUNK_BYTES, dtype: torch.dtype = torch.float32
) -> MeasuredEntropy:
    """Entropies of the predictions for hidden (N, D) and what bounds them. One product N x D x V, one V x D x D in
    fp64.

    Raises ValueError if hidden does not fit the head or has no rows.
    """
    if hidden.dim() != 2 or hidden.shape[1] != head.hidden_size or not hidden.shape[0]:
        raise ValueError(f"hidden must be (N, {head.hidden_size}) for this head, N at least 1: {tuple(hidden.shape)}")
    tokens, vocab_size = hidden.shape[0], head.vocab_size
    entropy, norm, centred_norm, hidden_norm = torch.empty(4, tokens, dtype=torch.float64, device=hidden.device)
    with without_tf32():
        for part in token_chunks(tokens, vocab_size, chunk_bytes, dtype):
            s = scaled_logits(hidden[part], head, dtype)  # (n, V)
            norm[part] = torch.linalg.vector_norm(s, dim=1).double()
            centred_norm[part] = torch.linalg.vector_norm(s - s.mean(1, keepdim=True), dim=1).double()
            hidden_norm[part] = torch.linalg.vector_norm(hidden[part].double(), dim=1)
            s -= s.amax(1, keepdim=True)
            weights = s.exp()
            total = weights.sum(1).double()
            entropy[part] = total.log() - weights.mul_(s).sum(1).double() / total
    scale = head_scale(head, float(hidden.abs().max()), float(hidden_norm.square().mean().sqrt()))
    theorem_norm = scale.sigma_c * scale.sigma_h * math.sqrt(scale.hidden_size) + scale.bias_norm
    return MeasuredEntropy(
        entropy_nats=entropy,
        centred_logit_norm=centred_norm,
        logit_norm=norm,
        centred_logit_bound_nats=_bounds(centred_norm, vocab_size),
        logit_bound_nats=_bounds(norm, vocab_size),
        centred_head_bound_nats=_bounds(
            (scale.centred_sigma_c * hidden_norm + scale.centred_bias_norm) / head.temperature, vocab_size
        ),
        head_bound_nats=_bounds((scale.sigma_c * hidden_norm + scale.bias_norm) / head.temperature, vocab_size),
        theorem_bound_nats=entropy_lower_bound(vocab_size, theorem_norm / head.temperature),
        maximum_nats=math.log(vocab_size),
        scale=scale,
    )


def head_scale(head: Head, sigma_h: float, hidden_norm_rms: float) -> HeadScale:
    """Spectral norms of a head, with and without its mean row, from the (D, D) Gram matrix in fp64."""
    weight, bias = head.linear_weight, head.linear_bias
    gram = torch.zeros(head.hidden_size, head.hidden_size, dtype=torch.float64, device=weight.device)
    mean = torch.zeros(head.hidden_size, dtype=torch.float64, device=weight.device)
    blocks = slices(head.vocab_size, 8 * head.hidden_size)
    for part in blocks:
        mean += weight[part].double().sum(0) / head.vocab_size
    # centred rows, not the Gram matrix less V * mean * mean^T: where the rows share a direction that would cancel
    for part in blocks:
        rows = weight[part].double() - mean
        gram.addmm_(rows.T, rows)
    b = torch.zeros(1, dtype=torch.float64) if bias is None else bias.double()
    return HeadScale(
        sigma_c=_root_of_largest(gram + head.vocab_size * torch.outer(mean, mean)),
        centred_sigma_c=_root_of_largest(gram),
        bias_norm=float(torch.linalg.vector_norm(b)),
        centred_bias_norm=float(torch.linalg.vector_norm(b - b.mean())),
        sigma_h=sigma_h,
        hidden_norm_rms=hidden_norm_rms,
        hidden_size=head.hidden_size,
    )


def _root_of_largest(gram: Tensor) -> float:
    return math.sqrt(max(0.0, float(torch.linalg.eigvalsh(gram)[-1])))


def _bounds(norms: Tensor, vocab_size: int) -> Tensor:
    """(N,) the lower bound at each norm."""
    values = [entropy_lower_bound(vocab_size, norm) for norm in norms.tolist()]
    return torch.tensor(values, dtype=torch.float64, device=norms.device)
