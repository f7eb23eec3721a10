"""Inputs captured from a training run: a safetensors file with input, linear_weight, target and maybe linear_bias."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from harness.case import Case
from harness.input_header import header_mistakes, wanted_tensors


def targets_outside(target: Tensor, vocab_size: int, ignore_index: int) -> int:
    """How many of target (N,) are neither a class, in 0..vocab_size - 1, nor ignored."""
    return int(((target != ignore_index) & ((target < 0) | (target >= vocab_size))).sum())


def read_input_file(
    case: Case, ignore_index: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """input (N, D), linear_weight (V, D), linear_bias (V,) or None, target (N,) int64, as the file has them.

    Raises FileNotFoundError if there is no such file, else ValueError that names the file and everything in it that
    does not fit the case: a missing tensor, a shape, a dtype, a target outside the vocabulary.
    """
    path = Path(str(case.inputs.path))
    if not path.is_file():
        raise FileNotFoundError(f"inputs file {path}: there is no such file (seen from {Path.cwd()})")
    mistakes = header_mistakes(path, case)
    if mistakes:
        raise ValueError(f"inputs file {path}: " + "; ".join(mistakes))
    with safe_open(str(path), framework="pt", device=str(device)) as file:
        tensors = {name: file.get_tensor(name) for name in wanted_tensors(case)}
    target = tensors["target"].contiguous()
    if outside := targets_outside(target, case.vocab_size, ignore_index):
        what = f"{outside} targets are neither in 0..{case.vocab_size - 1} nor {ignore_index}"
        raise ValueError(f"inputs file {path}: {what}")
    return tensors["input"], tensors["linear_weight"], tensors.get("linear_bias"), target
