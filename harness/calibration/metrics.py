"""All metrics of a head on held-out tokens, and the bins for its reliability diagram."""

from __future__ import annotations

from dataclasses import replace
from typing import TypedDict

import torch
from torch import Tensor

from harness.calibration.binning import equal_mass_bins, equal_width_bins
from harness.calibration.bins import (
    Bins,
    expected_calibration_error,
    maximum_calibration_error,
    root_mean_square_calibration_error,
    sampling_floor,
)
from harness.calibration.classwise import adaptive_class_errors, static_class_errors
from harness.calibration.head import CHUNK_BYTES, Head, counted_tokens
from harness.calibration.row import Metrics
from harness.calibration.tokens import TokenStatistics, own_targets, token_statistics


class _Options(TypedDict):
    bin_count: int
    chunk_bytes: int
    dtype: torch.dtype


def top_label_metrics(statistics: TokenStatistics, *, bin_count: int = 15) -> tuple[Metrics, Bins]:
    """Everything that needs no other class than the top one and the target, and the bins of equal width."""
    confidence, correct = statistics.confidence, statistics.correct
    width = equal_width_bins(confidence, correct, bin_count)
    mass = equal_mass_bins(confidence, correct, bin_count)
    metrics = Metrics(
        tokens=statistics.target.numel(),
        bin_count=bin_count,
        accuracy=float(correct.double().mean()),
        loss_nats=float(statistics.loss_nats.mean()),
        entropy_nats=float(statistics.entropy_nats.mean()),
        mean_confidence=float(confidence.mean()),
        ece=expected_calibration_error(width),
        ece_floor=sampling_floor(width),
        rms=root_mean_square_calibration_error(width),
        mce=maximum_calibration_error(width),
        ece_mass=expected_calibration_error(mass),
        rms_mass=root_mean_square_calibration_error(mass),
    )
    return metrics, width


def calibration_metrics(
    hidden: Tensor,
    target: Tensor,
    head: Head,
    *,
    bin_count: int = 15,
    classwise: bool = True,
    chunk_bytes: int = CHUNK_BYTES,
    dtype: torch.dtype = torch.float32,
) -> tuple[Metrics, Bins]:
    """Metrics of hidden (N, D) with target (N,) int64, -100 left out, and the bins of equal width.

    One product N x D x V. With `classwise` six, and two sorts of N V numbers: all is done again with `own_targets`
    for the floors. Raises ValueError as `counted_tokens` does, or if there is no bin.
    """
    tokens = counted_tokens(hidden, target, head)
    statistics = token_statistics(tokens.hidden, tokens.target, head, chunk_bytes=chunk_bytes, dtype=dtype)
    metrics, bins = top_label_metrics(statistics, bin_count=bin_count)
    if classwise:
        options = _Options(bin_count=bin_count, chunk_bytes=chunk_bytes, dtype=dtype)
        own = own_targets(tokens.hidden, head, chunk_bytes=chunk_bytes, dtype=dtype)
        static = static_class_errors(tokens.hidden, tokens.target, head, **options)
        static_floor = static_class_errors(tokens.hidden, own, head, **options)
        adaptive = adaptive_class_errors(tokens.hidden, head, statistics, **options)
        adaptive_floor = adaptive_class_errors(tokens.hidden, head, statistics, target=own, **options)
        metrics = replace(
            metrics,
            sce=static.mean,
            sce_total=static.total,
            sce_total_floor=static_floor.total,
            ace=adaptive.mean,
            ace_total=adaptive.total,
            ace_total_floor=adaptive_floor.total,
        )
    return metrics, bins
