"""What the kernels compute on: the operands of one loss, checked and flattened, and what came out of it."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

# The filter of the paper and of cut-cross-entropy: about the smallest value that still changes a bf16 sum.
FILTER_EPS = 2.0**-12


@dataclass(frozen=True)
class Problem:
    """One label-smoothed linear cross-entropy over N tokens, hidden size D, vocabulary V.

    The api has checked it: two-dimensional operands of one dtype and device, unit stride in the last
    dimension. A softcap of 0 means none (operators take no optional floats).
    """

    input: Tensor  # (N, D)
    weight: Tensor  # (V, D)
    bias: Tensor | None  # (V,)
    target: Tensor  # (N,) int64
    label_smoothing: float
    ignore_index: int
    softcap: float

    @property
    def tokens(self) -> int:
        return self.input.shape[0]

    @property
    def hidden_size(self) -> int:
        return self.input.shape[1]

    @property
    def vocab_size(self) -> int:
        return self.weight.shape[0]

    @property
    def counted(self) -> Tensor:
        """(N,) bool: rows that have a loss and a gradient. Ignored rows and targets out of range do not."""
        inside = (self.target >= 0) & (self.target < self.vocab_size)
        return inside & (self.target != self.ignore_index)

    def rows(self, index: Tensor) -> "Problem":
        """The same loss over a subset of the tokens, packed."""
        return replace(self, input=self.input[index], target=self.target[index])

    def classes(self, start: int, stop: int) -> "Problem":
        """The operands of classes start..stop; targets still count from class 0."""
        bias = None if self.bias is None else self.bias[start:stop]
        return replace(self, weight=self.weight[start:stop], bias=bias)


@dataclass(frozen=True)
class Statistics:
    """Per-token results in fp32. Ignored rows hold zeros; rows whose target is out of range, nan losses.

    The backward gets the softmax's normalisation as two numbers, p = exp(z - maximum) / total, for in
    exp(z - lse) the rounding of lse (1e-6 at an lse of 30) is an error of p that swamps p_y - 1 in a
    confident token.
    """

    loss: Tensor  # (N,)
    lse: Tensor  # (N,)
    nll: Tensor  # (N,) the unsmoothed negative log-likelihood
    maximum: Tensor  # (N,) the largest logit
    total: Tensor  # (N,) sum_v exp(z_v - maximum)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.loss, self.lse, self.nll, self.maximum, self.total

    @staticmethod
    def zeros(tokens: int, device: torch.device) -> "Statistics":
        """Of a batch in which every row is ignored."""
        return Statistics(*(torch.zeros(tokens, dtype=torch.float32, device=device) for _ in range(5)))

    def rows(self, index: Tensor) -> "Statistics":
        return Statistics(*(t[index] for t in self.tensors()))

    def placed(self, index: Tensor, tokens: int) -> "Statistics":
        """What `rows(index)` took out of a batch of `tokens`, back in its places; the other rows are ignored ones."""
        whole = Statistics.zeros(tokens, index.device)
        for every, some in zip(whole.tensors(), self.tensors(), strict=True):
            every.index_copy_(0, index, some)
        return whole


@dataclass(frozen=True)
class Gradients:
    """Gradients of the operands that need one, in their dtype; None for the others."""

    input: Tensor | None  # (N, D)
    weight: Tensor | None  # (V, D)
    bias: Tensor | None  # (V,)

    def placed(self, index: Tensor, tokens: int) -> "Gradients":
        """With dE of `Problem.rows(index)` in its places among `tokens` rows, 0 in the others."""
        if self.input is None:
            return self
        whole = self.input.new_zeros(tokens, self.input.shape[1]).index_copy_(0, index, self.input)
        return replace(self, input=whole)


@dataclass(frozen=True)
class Needs:
    """Which operands need a gradient: a frozen head costs no dC, a frozen input no dE."""

    input: bool = True
    weight: bool = True
    bias: bool = False


@dataclass(frozen=True)
class Method:
    """How gradients are computed: all of dz, or the paper's filter over (optionally sorted) classes."""

    filtered: bool = False
    eps: float = 0.0  # filtered: tiles with every |dz| <= eps are skipped; 0 skips none
    sort: bool = False  # filtered: classes in order of their average logit
