"""A whole case on a GPU, with the workers side by side: what only several processes on one device can show."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness.analysis.rows import Rows
from harness.record import Record, Status

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SUITE = """\
name: interleaved
description: two cases, two rows that settle beside each other, and one that does not survive its turns
device: cuda
grid: {tokens: 2048, hidden_size: 1024, vocab_size: 32000, inputs: zipf-medium, label_smoothing: [0.0, 0.1]}
implementations:
  - lower-bound
  - baseline
  - ours-exact
  - ours-fused-no-filter
  - {name: dies-later, path: "tests.harness.planted:dies_later"}
measurement: {minimum_rounds: 10, samples_per_turn: 2, case_budget_s: 30}
expectations:
  - {implementation: dies-later, status: crashed, reason: planted}
"""


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    root = tmp_path_factory.mktemp("interleaved")
    (root / "suite.yaml").write_text(SUITE)
    command = [sys.executable, "-m", "harness", "run", str(root / "suite.yaml"), "--out", str(root / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = (Path(root) / "run" / "records.jsonl").read_bytes().splitlines()
    return [Record.model_validate_json(line) for line in lines]


def test_every_row_has_its_place_in_every_round(records: list[Record]) -> None:
    assert len(records) == 2 * 5
    for record in records:
        if record.status is Status.OK and not record.analytic:
            assert record.times is not None and record.probes is not None
            assert len(record.times.fwd_bwd_ms) >= 20
            assert len(record.times.position) == len(record.times.sm_clock_mhz) == len(record.times.fwd_bwd_ms)
            assert len(record.probes.copy_ms) == len(record.gemm_ms) == len(record.probes.position)


def test_a_row_that_dies_leaves_the_others_and_says_when(records: list[Record]) -> None:
    for record in records:
        if record.implementation == "dies-later":
            assert record.status is Status.CRASHED
            found = re.search(r"in round (\d+), after (\d+) samples", record.reason or "")
            assert found is not None, record.reason
            assert record.times is not None and len(record.times.fwd_bwd_ms) == int(found[2]) == 2 * (int(found[1]) - 1)
        else:
            assert record.status is Status.OK, (record.implementation, record.reason)


def test_ratios_and_noise_can_be_read(records: list[Record]) -> None:
    rows = {(row.case, row.implementation): row for row in Rows(records)}
    for (_, name), row in rows.items():
        if name.startswith("ours"):
            assert row.fwd_bwd_to_reference_low is not None and row.fwd_bwd_gemms_low is not None
            assert row.fwd_bwd_floor_share is not None and 0 < row.fwd_bwd_floor_share < 1
        if name == "baseline":
            assert row.noise is not None and row.noise < 0.1
