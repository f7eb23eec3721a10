"""Inputs captured from a training run: a safetensors file with input, linear_weight, target and maybe linear_bias."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from harness.case import Case


def read_input_file(
    case: Case, ignore_index: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """input (N, D), linear_weight (V, D), linear_bias (V,) or None, target (N,) int64, as the file has them.

    Raises FileNotFoundError if there is no such file, else ValueError that names the file and everything in it that
    does not fit the case: a missing tensor, a shape, a dtype, a target outside the vocabulary. Nothing is converted: a
    file captured in another dtype would be other numbers than those the case claims to compute on.
    """
    path = Path(str(case.inputs.path))
    if not path.is_file():
        raise FileNotFoundError(f"inputs file {path}: there is no such file (seen from {Path.cwd()})")
    dtype: torch.dtype = getattr(torch, case.dtype)
    expected = {
        "input": ((case.tokens, case.hidden_size), dtype),
        "linear_weight": ((case.vocab_size, case.hidden_size), dtype),
        "target": ((case.tokens,), torch.int64),
    }
    if case.linear_bias:
        expected["linear_bias"] = ((case.vocab_size,), dtype)
    try:
        with safe_open(str(path), framework="pt", device=str(device)) as file:
            names = set(file.keys())
            tensors = {name: file.get_tensor(name) for name in expected if name in names}
    except SafetensorError as error:
        raise ValueError(f"inputs file {path}: not a safetensors file: {error}") from error

    mistakes = []
    for name, (shape, wanted) in expected.items():
        if name not in tensors:
            mistakes.append(f"has no tensor {name}; it has {', '.join(sorted(names)) or 'none'}")
            continue
        if tuple(tensors[name].shape) != shape:
            mistakes.append(f"{name} is {tuple(tensors[name].shape)}, the case needs {shape}")
        if tensors[name].dtype != wanted:
            mistakes.append(f"{name} is {tensors[name].dtype}, the case needs {wanted}")
    if "linear_bias" in names and not case.linear_bias:
        mistakes.append("has linear_bias, but the case says linear_bias: false")
    target = tensors.get("target")
    if target is not None and target.dtype == torch.int64:
        outside = int(((target != ignore_index) & ((target < 0) | (target >= case.vocab_size))).sum())
        if outside:
            mistakes.append(f"{outside} targets are neither in 0..{case.vocab_size - 1} nor {ignore_index}")
    if mistakes:
        raise ValueError(f"inputs file {path}: " + "; ".join(mistakes))
    return tensors["input"], tensors["linear_weight"], tensors.get("linear_bias"), tensors["target"].contiguous()
