"""Captured activations: N tokens of a model's text as its head sees them, and the file they are kept in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import JsonValue
from safetensors.torch import save_file
from torch import Tensor

from harness.atomic import new_file
from harness.capture.source import InvalidSource, Source
from harness.case import Case, DType, Inputs
from harness.worker.inputs import Tensors, checksum
from harness.worker.statistics import input_statistics

_BATCH_TOKENS = 16384  # of one call of the model


@dataclass(frozen=True)
class Activations:
    """Tensors as `inputs: file` wants them, the case they are for, and where they come from."""

    tensors: Tensors
    case: Case
    origin: dict[str, str]
    statistics: dict[str, JsonValue]


@torch.no_grad()
def capture(source: Source, tokens: int, dtype: DType, path: Path) -> Activations:
    """The first `tokens` predictions of the source's text, rounded once to `dtype`, and their statistics.

    Raises InvalidSource if the text is too short.
    """
    if tokens > source.predictions:
        raise InvalidSource(
            f"the text has {len(source.tokens)} tokens, {source.predictions} to predict in windows of "
            f"{source.context}; {tokens} were asked for"
        )
    device, kind = source.linear_weight.device, getattr(torch, dtype)
    count = -(-tokens // source.context)
    text = torch.from_numpy(source.tokens[: count * source.context + 1].astype(np.int64))
    windows = text.unfold(0, source.context + 1, source.context)  # (count, T + 1): each target once
    at_once = max(1, _BATCH_TOKENS // source.context)
    hidden = [
        source.hidden_states(windows[start : start + at_once, :-1].to(device)).flatten(0, 1).to(kind)
        for start in range(0, count, at_once)
    ]
    bias = source.linear_bias
    tensors = Tensors(
        input=torch.cat(hidden)[:tokens].contiguous(),
        linear_weight=source.linear_weight.to(kind).contiguous(),
        linear_bias=None if bias is None else bias.to(kind).contiguous(),
        target=windows[:, 1:].flatten()[:tokens].to(device).contiguous(),
        upstream=torch.tensor(0.7, device=device),
    )
    case = Case(
        tokens=tokens,
        hidden_size=tensors.input.shape[1],
        vocab_size=tensors.linear_weight.shape[0],
        softcap=source.softcap,
        dtype=dtype,
        linear_bias=bias is not None,
        inputs=Inputs(kind="file", path=str(path)),
    )
    return Activations(tensors, case, source.origin, input_statistics(case, tensors))


def write(activations: Activations, path: Path) -> None:
    """A safetensors file; origin, statistics and a checksum of the tensors are its metadata, all of them text."""
    named: dict[str, Tensor | None] = {
        "input": activations.tensors.input,
        "linear_weight": activations.tensors.linear_weight,
        "linear_bias": activations.tensors.linear_bias,
        "target": activations.tensors.target,
    }
    tensors = {name: tensor.cpu() for name, tensor in named.items() if tensor is not None}
    metadata = activations.origin | {
        "softcap": str(activations.case.softcap),
        "checksum": checksum(activations.tensors),
        "statistics": json.dumps(activations.statistics),
    }
    with new_file(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def suite_case(case: Case) -> str:
    """The case as a line of a suite's `cases`."""
    given = case.model_dump(exclude_defaults=True, exclude={"inputs"})
    given["inputs"] = "{" + f"kind: file, path: {case.inputs.path}" + "}"
    return "- {" + ", ".join(f"{key}: {_yaml(value)}" for key, value in given.items()) + "}"


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
