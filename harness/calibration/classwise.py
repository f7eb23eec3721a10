"""Classwise calibration: every token makes V predictions, one for each class, and each class is binned for itself.

With g_kb = sum of [y_n = k] - p_nk over the tokens n whose p_nk lies in bin b of class k, n_kb their number:

    absolute_k = sum_b |g_kb| / N          (= sum_b n_kb / N * |acc_kb - conf_kb|)
    squared_k  = sum_b g_kb**2 / (n_kb N)  (= sum_b n_kb / N * (acc_kb - conf_kb)**2)

Their means over the classes are SCE (bins of equal width) and ACE (bins of equal mass) of Nixon et al. 2019, and the
squares of the classwise root-mean-square errors of Kumar et al. 2019.

Equal width runs over chunks of tokens with two (V, B) sums in fp64, 16 B V bytes: 15 MiB for V 65536 and 15 bins. A
token has at most B probabilities at or above 1/B, so bin 0 is a dense column sum less those few, and only they are
scattered. Equal mass is exact, no sketch: it runs over blocks of W classes, where all N probabilities of a class can
be sorted; lse comes from a pass before. Memory: O(N W), about five times chunk_bytes since sorting makes indices too.
Work: the logits twice, a sort of N V numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.calibration.binning import equal_mass_cuts, equal_width_index, range_hits, range_sums
from harness.calibration.head import CHUNK_BYTES, Head, class_blocks, counted_tokens, scaled_logits, token_chunks
from harness.calibration.tokens import TokenStatistics
from harness.worker.products import without_tf32


@dataclass(frozen=True, eq=False)
class ClassErrors:
    """Calibration errors of V classes, each over all N tokens, in fp64."""

    absolute: Tensor  # (V,)
    squared: Tensor  # (V,)

    @property
    def mean(self) -> float:
        """Over classes, as published: SCE or ACE. At most 2 / V, so small for a large vocabulary whatever the model."""
        return float(self.absolute.mean())

    @property
    def total(self) -> float:
        """Summed over classes, in 0..2: mean times V. Comparable across vocabularies."""
        return float(self.absolute.sum())

    @property
    def root_mean_square(self) -> float:
        """The root of the mean of `squared` over classes."""
        return float(self.squared.mean().sqrt())


@torch.no_grad()
def static_class_errors(
    hidden: Tensor,
    target: Tensor,
    head: Head,
    *,
    bin_count: int = 15,
    chunk_bytes: int = CHUNK_BYTES,
    dtype: torch.dtype = torch.float32,
) -> ClassErrors:
    """Per-class errors in `bin_count` bins of equal width; `mean` is SCE. hidden (N, D), target (N,) int64 or -100.

    Raises ValueError as `counted_tokens` does, or if there is no bin.
    """
    _check(bin_count)
    tokens = counted_tokens(hidden, target, head)
    shape = (head.vocab_size, bin_count)
    gap = torch.zeros(shape, dtype=torch.float64, device=hidden.device)  # p - hits, moved bin by bin
    counts = torch.zeros(shape, dtype=torch.float64, device=hidden.device)
    with without_tf32():
        for part in token_chunks(tokens.count, head.vocab_size, chunk_bytes, dtype):
            p = scaled_logits(tokens.hidden[part], head, dtype).softmax(1)  # (n, V)
            y = tokens.target[part]
            p_target = p.gather(1, y[:, None])[:, 0]
            gap[:, 0] += p.sum(0).double()
            counts[:, 0] += p.shape[0]
            _add(gap, y, equal_width_index(p_target, bin_count), torch.full_like(p_target, -1))
            if bin_count > 1:
                # a little below 1/B: what is found too much goes back to bin 0, what is missed would never be moved
                n, v = (p >= 0.999 / bin_count).nonzero(as_tuple=True)
                large = p[n, v]
                index = equal_width_index(large, bin_count)
                for sums, amount in ((gap, large), (counts, torch.ones_like(large))):
                    _add(sums, v, index, amount)
                    _add(sums, v, torch.zeros_like(index), -amount)
    return _class_errors(gap, counts, tokens.count)


@torch.no_grad()
def adaptive_class_errors(
    hidden: Tensor,
    head: Head,
    statistics: TokenStatistics,
    *,
    target: Tensor | None = None,
    bin_count: int = 15,
    chunk_bytes: int = CHUNK_BYTES,
    dtype: torch.dtype = torch.float32,
) -> ClassErrors:
    """Per-class errors in `bin_count` bins of equal mass; `mean` is ACE.

    hidden (N, D): the rows that `statistics` counted, in its order, and `head` with the temperature it was taken at.
    target (N,) int64, in place of that of `statistics`: for example `own_targets`.
    Raises ValueError if the numbers of rows differ, or if there is no bin.
    """
    _check(bin_count)
    count = statistics.target.numel()
    if hidden.dim() != 2 or hidden.shape[0] != count:
        raise ValueError(f"hidden must be ({count}, D), the tokens of statistics, not {tuple(hidden.shape)}")
    target = statistics.target if target is None else target
    cuts = equal_mass_cuts(count, bin_count)
    sizes = torch.tensor(cuts, dtype=torch.float64, device=hidden.device).diff()
    absolute, squared = torch.empty(2, head.vocab_size, dtype=torch.float64, device=hidden.device)
    with without_tf32():
        for part, block in class_blocks(head, count, chunk_bytes, dtype):
            s = scaled_logits(hidden, block, dtype)  # (N, W)
            p = s.sub_(statistics.lse[:, None].to(dtype)).exp_()
            inside = ((target >= part.start) & (target < part.stop)).nonzero()[:, 0]
            hit_column = target[inside] - part.start
            hit_value = p[inside, hit_column]
            columns = p.T.contiguous().sort(1).values  # (W, N)
            gap = range_sums(columns, cuts) - range_hits(columns, hit_column, hit_value, cuts)  # (W, B)
            errors = _class_errors(gap, sizes.expand_as(gap), count)
            absolute[part], squared[part] = errors.absolute, errors.squared
    return ClassErrors(absolute, squared)


def _class_errors(gap: Tensor, counts: Tensor, tokens: int) -> ClassErrors:
    """gap and counts (V, B), fp64."""
    squares = gap.square() / counts.clamp(min=1)  # an empty bin has a gap of 0
    return ClassErrors(gap.abs().sum(1) / tokens, torch.where(counts > 0.5, squares, 0.0).sum(1) / tokens)


def _add(sums: Tensor, row: Tensor, column: Tensor, amount: Tensor) -> None:
    """sums[row, column] += amount, repeated places added up. sums (V, B) fp64 contiguous, the others (H,)."""
    sums.view(-1).index_add_(0, row * sums.shape[1] + column, amount.double())


def _check(bin_count: int) -> None:
    if bin_count < 1:
        raise ValueError(f"bin_count must be at least 1, not {bin_count}")
