"""Synthetic runs: one as the scaling suite's, with costs that follow known powers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.record import Record

MakeRecord = Callable[..., Record]
CENTRE = {"tokens": 4096, "hidden_size": 2048, "vocab_size": 65536}
SWEEP = {
    "tokens": (1024, 2048, 8192),
    "hidden_size": (512, 1024, 8192),
    "vocab_size": (16384, 131072, 262144),
}


@pytest.fixture
def scaling_run(make_record: MakeRecord) -> list[Record]:
    """Time ~ N·D·V for `dense`, ~ N·D·sqrt(V) for `clever`, which disagrees; peak ~ N·V and ~ V·D."""
    shapes = [CENTRE, *(CENTRE | {field: value} for field, values in SWEEP.items() for value in values)]
    records = [record for shape in shapes for beta in (0.1, 0.0) for record in _rows(make_record, beta, **shape)]
    for beta in (0.2, 1.0):
        records += _rows(make_record, beta, **CENTRE)
    return records


def _rows(make_record: MakeRecord, beta: float, tokens: int, hidden_size: int, vocab_size: int) -> list[Record]:
    shape = {"tokens": tokens, "hidden_size": hidden_size, "vocab_size": vocab_size, "label_smoothing": beta}
    dense_ms = tokens * hidden_size * vocab_size * 1e-10 * (1 + beta)
    clever_ms = tokens * hidden_size * vocab_size**0.5 * 1e-8
    dense_mib, clever_mib = tokens * vocab_size * 2**-18, vocab_size * hidden_size * 2**-18
    return [
        make_record("dense", ms=(dense_ms / 3, dense_ms * 2 / 3), mib=(1, 1, dense_mib), **shape),
        make_record(
            "clever", "disagrees", ms=(clever_ms / 3, clever_ms * 2 / 3), mib=(1, 1, clever_mib),
            excess=(9.0, 1.0), **shape,
        ),
    ]  # fmt: skip
