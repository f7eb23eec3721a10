"""Files of inputs are held to their suite by what their headers say, before any worker starts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from harness.suite_file import load_suite
from harness.yaml_source import InvalidFile

SUITE = """\
name: captured
description: one case
device: cpu
grid: {{tokens: 8, hidden_size: 4, vocab_size: 16, dtype: float32, inputs: {{kind: file, path: {file}}}}}
implementations: [baseline]
"""


def test_a_file_of_other_tensors_is_a_mistake_before_anything_runs(tmp_path: Path) -> None:
    file = tmp_path / "captured.safetensors"
    tensors = {"input": np.zeros((8, 4), np.float32), "linear_weight": np.zeros((16, 3), np.float32)}
    save_file(tensors, file)
    path = tmp_path / "suite.yaml"
    path.write_text(SUITE.format(file=file))
    load_suite(path)  # to print it, say
    with pytest.raises(InvalidFile) as caught:
        load_suite(path, to_be_run=True)
    line = str(caught.value)
    assert line.startswith(f"{path}:") and f"{file}: " in line
    assert "linear_weight is (16, 3), the case needs (16, 4)" in line
    assert "has no tensor target; it has input, linear_weight" in line
    file.write_bytes(b"text")
    with pytest.raises(InvalidFile, match=r"captured\.safetensors: not a safetensors file"):
        load_suite(path, to_be_run=True)


def test_a_file_that_fits_is_none(tmp_path: Path) -> None:
    file = tmp_path / "captured.safetensors"
    tensors = {"input": np.zeros((8, 4), np.float32), "linear_weight": np.zeros((16, 4), np.float32)}
    save_file(tensors | {"target": np.zeros(8, np.int64)}, file)
    path = tmp_path / "suite.yaml"
    path.write_text(SUITE.format(file=file))
    assert len(load_suite(path, to_be_run=True).cases_on("cpu")) == 1
