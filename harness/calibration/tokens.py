"""What is kept of every token: five numbers and the target. All top-label metrics follow: O(N), not O(N V)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.calibration.head import CHUNK_BYTES, Head, counted_tokens, scaled_logits, token_chunks
from harness.worker.products import without_tf32


@dataclass(frozen=True, eq=False)
class TokenStatistics:
    """Per counted token, N of them, in fp64: of s / temperature, the logits that the softmax sees."""

    lse: Tensor  # (N,) log-sum-exp
    top_logit: Tensor  # (N,)
    top_class: Tensor  # (N,) int64, one of the classes with the top logit
    target_logit: Tensor  # (N,)
    expected_logit: Tensor  # (N,) sum_v p_v * logit_v
    target: Tensor  # (N,) int64

    @property
    def confidence(self) -> Tensor:
        """(N,) probability of the top class."""
        return (self.top_logit - self.lse).exp()

    @property
    def correct(self) -> Tensor:
        """(N,) bool: the top class is the target."""
        return self.top_class == self.target

    @property
    def loss_nats(self) -> Tensor:
        """(N,) negative log-likelihood of the target, no label smoothing."""
        return self.lse - self.target_logit

    @property
    def entropy_nats(self) -> Tensor:
        """(N,) entropy of the prediction: lse - sum_v p_v * logit_v."""
        return self.lse - self.expected_logit


@torch.no_grad()
def own_targets(
    hidden: Tensor,
    head: Head,
    *,
    seed: int = 0,
    chunk_bytes: int = CHUNK_BYTES,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(N,) int64 targets drawn from the head's own predictions for hidden (N, D), so that it is perfectly calibrated.

    Any metric with these in place of the true targets is that metric's sampling floor on these tokens. The draw is the
    argmax of p_v / e_v with e_v exponential; it depends on seed, device and chunk_bytes.
    """
    generator = torch.Generator(hidden.device).manual_seed(seed)
    target = torch.empty(hidden.shape[0], dtype=torch.int64, device=hidden.device)
    with without_tf32():
        for part in token_chunks(hidden.shape[0], head.vocab_size, chunk_bytes, dtype):
            s = scaled_logits(hidden[part], head, dtype)  # (n, V)
            target[part] = s.sub_(torch.empty_like(s).exponential_(generator=generator).log_()).argmax(1)
    return target


@torch.no_grad()
def token_statistics(
    hidden: Tensor,
    target: Tensor,
    head: Head,
    *,
    chunk_bytes: int = CHUNK_BYTES,
    dtype: torch.dtype = torch.float32,
) -> TokenStatistics:
    """Statistics of hidden (N, D) with target (N,) int64, -100 left out; one product N x D x V.

    `dtype` is that of logits and exponentials; sums of two terms that may cancel are made in fp64. Raises ValueError as
    `counted_tokens` does.
    """
    tokens = counted_tokens(hidden, target, head)
    lse, top, target_logit, expected = torch.empty(4, tokens.count, dtype=torch.float64, device=hidden.device)
    top_class = torch.empty_like(tokens.target)
    with without_tf32():
        for part in token_chunks(tokens.count, head.vocab_size, chunk_bytes, dtype):
            s = scaled_logits(tokens.hidden[part], head, dtype)  # (n, V)
            chunk_top, top_class[part] = s.max(1)
            top[part] = chunk_top.double()
            target_logit[part] = s.gather(1, tokens.target[part, None])[:, 0].double()
            s -= chunk_top[:, None]
            weights = s.exp()
            total = weights.sum(1).double()
            # the top logit is added in fp64: rounding it together with a small remainder would blur confident tokens
            lse[part] = top[part] + total.log()
            expected[part] = top[part] + weights.mul_(s).sum(1).double() / total
    return TokenStatistics(lse, top, top_class, target_logit, expected, tokens.target)
