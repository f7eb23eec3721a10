"""The referee's turn: what the device does at best, in every round."""

from __future__ import annotations

import torch

from harness.case import Case
from harness.worker.probes import bytes_of_a_copy, copy_probe
from harness.worker.referee import RefereeSession

CASE = Case(tokens=4, hidden_size=8, vocab_size=32, dtype="float32", inputs="gaussian")


def test_a_copy_moves_as_many_bytes_as_it_says() -> None:
    copy = copy_probe(torch.device("cpu"))
    copy()
    source, target = (cell.cell_contents for cell in copy.__closure__ or ())
    assert torch.equal(source, target)
    assert source.data_ptr() != target.data_ptr()
    assert source.nbytes + target.nbytes == bytes_of_a_copy(torch.device("cpu"))
    assert len(source.unique()) > 0.99 * source.numel()  # random bits, not zeros


def test_the_referee_times_copies_and_products() -> None:
    referee = RefereeSession(CASE.model_dump(mode="json"), "cpu", 0.9)
    turn = referee.turn(3)
    assert set(turn) == {"copy_ms", "gemm_ms"}  # on a GPU with NVML its clock too
    assert all(len(samples) == 3 and min(samples) > 0 for samples in turn.values())  # type: ignore[type-var,arg-type]
    assert referee.opened()["copy_bytes"] == bytes_of_a_copy(torch.device("cpu"))
