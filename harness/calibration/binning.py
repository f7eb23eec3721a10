"""Sorts predictions into bins of confidence: of equal width, or of equal mass.

Equal width: bin b of B is [b / B, (b + 1) / B), the last one closed, as in torchmetrics but for a confidence of
exactly 1, which has a bin of its own there. Equal mass: of N predictions in ascending order, bin b takes those from b
* N // B up to (b + 1) * N // B. Confidences that are equal share their right answers evenly, so that no result
depends on the order of the tokens; saturated models have many confidences of exactly 1.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from harness.calibration.bins import Bins


def equal_width_bins(confidence: Tensor, correct: Tensor, bin_count: int = 15) -> Bins:
    """Bins of equal width. confidence (N,) in 0..1, correct (N,) bool.

    Raises ValueError if there is no bin or token.
    """
    _check(confidence, correct, bin_count)
    index = equal_width_index(confidence, bin_count)
    sums = torch.zeros(3, bin_count, dtype=torch.float64, device=confidence.device)
    c = confidence.double()
    sums.index_add_(1, index, torch.stack([c, correct.double(), c * (1 - c)]))
    counts = torch.bincount(index, minlength=bin_count)
    edges = torch.linspace(0, 1, bin_count + 1, dtype=torch.float64)
    confidence_sums, correct_sums, variance_sums = (tuple(row) for row in sums.tolist())
    return Bins(tuple(edges.tolist()), tuple(counts.tolist()), confidence_sums, correct_sums, variance_sums)


def equal_mass_bins(confidence: Tensor, correct: Tensor, bin_count: int = 15) -> Bins:
    """Bins of equal mass, exact: N numbers are sorted. confidence (N,) in 0..1, correct (N,) bool.

    With fewer tokens than bins some bins are empty. Raises ValueError if there is no bin or token.
    """
    _check(confidence, correct, bin_count)
    column = confidence.double()[None].sort(1).values  # (1, N)
    hits = confidence.double()[correct]
    row = torch.zeros(hits.numel(), dtype=torch.int64, device=hits.device)
    cuts = equal_mass_cuts(confidence.numel(), bin_count)
    at_cuts = column[0, [min(cut, confidence.numel() - 1) for cut in cuts]]
    return Bins(
        edges=tuple(at_cuts.tolist()),
        counts=tuple(stop - start for start, stop in pairwise(cuts)),
        confidence_sums=tuple(range_sums(column, cuts)[0].tolist()),
        correct_sums=tuple(range_hits(column, row, hits, cuts)[0].tolist()),
        variance_sums=tuple(range_sums(column * (1 - column), cuts)[0].tolist()),
    )


def equal_width_index(confidence: Tensor, bin_count: int) -> Tensor:
    """int64, of confidence's shape: the bin of equal width, decided in fp64."""
    inner = torch.linspace(0, 1, bin_count + 1, dtype=torch.float64, device=confidence.device)[1:-1]
    return torch.bucketize(confidence.double(), inner, right=True)


def equal_mass_cuts(count: int, bin_count: int) -> list[int]:
    """B + 1 positions in a sorted sequence of `count` that cut it into parts whose sizes differ by at most one."""
    return [b * count // bin_count for b in range(bin_count + 1)]


def range_sums(sorted_columns: Tensor, cuts: list[int]) -> Tensor:
    """(W, B) fp64: the sums between the cuts of each of W columns. sorted_columns (W, N)."""
    parts = pairwise(cuts)
    return torch.stack([sorted_columns[:, start:stop].sum(1, dtype=torch.float64) for start, stop in parts], 1)


def range_hits(sorted_columns: Tensor, hit_column: Tensor, hit_value: Tensor, cuts: list[int]) -> Tensor:
    """(W, B) fp64: how many hits lie between the cuts, each spread evenly over the positions of its value.

    sorted_columns (W, N) ascending; hit_column (H,) int64 in 0..W-1 and hit_value (H,): bit for bit an element of that
    column. A hit is a prediction that came true. Only hits are located, so nothing but values is ever sorted.
    """
    width = sorted_columns.shape[0]
    order = hit_column.argsort(stable=True)
    hit_column, hit_value = hit_column[order], hit_value[order]
    per_column = torch.bincount(hit_column, minlength=width)
    place = torch.arange(hit_column.numel(), device=hit_column.device) - (per_column.cumsum(0) - per_column)[hit_column]
    padded = sorted_columns.new_zeros(width, int(per_column.max()) if hit_column.numel() else 0)
    padded[hit_column, place] = hit_value
    first = torch.searchsorted(sorted_columns, padded)[hit_column, place].double()  # (H,)
    behind = torch.searchsorted(sorted_columns, padded, right=True)[hit_column, place].double()
    below = torch.zeros(width, len(cuts), dtype=torch.float64, device=sorted_columns.device)
    for index, cut in enumerate(cuts):
        below[:, index].index_add_(0, hit_column, ((cut - first) / (behind - first)).clamp_(0, 1))
    return below.diff(dim=1)


def _check(confidence: Tensor, correct: Tensor, bin_count: int) -> None:
    if bin_count < 1:
        raise ValueError(f"bin_count must be at least 1, not {bin_count}")
    if confidence.dim() != 1 or confidence.numel() == 0:
        raise ValueError(f"confidence must be (N,) with N at least 1, not {tuple(confidence.shape)}")
    if correct.shape != confidence.shape or correct.dtype != torch.bool:
        raise ValueError(f"correct must be {tuple(confidence.shape)} bool, not {tuple(correct.shape)} {correct.dtype}")
    if not bool(((confidence >= 0) & (confidence <= 1)).all()):
        raise ValueError("confidence must be in 0..1")
