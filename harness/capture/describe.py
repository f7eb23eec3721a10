"""What a capture and a captured file are, as markdown: what `harness capture` and `harness inspect` print."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from pydantic import JsonValue
from safetensors import SafetensorError, safe_open
from tabulate import tabulate
from torch import Tensor

from harness.capture.activations import Activations, capture, suite_case, write
from harness.capture.orders import ORDERS
from harness.capture.source import InvalidSource, Source, from_checkpoint, from_huggingface
from harness.capture.sparsity import Sparsity, sparsity
from harness.case import DType
from harness.running.run_kind import kind_of
from harness.training.curve_log import CurveLog
from harness.worker.input_file import targets_outside
from harness.worker.inputs import IGNORE_INDEX

_TENSORS = ("input", "linear_weight", "target")


def capture_to(
    model: str, path: Path, *, text: list[Path], tokens: int, context: int, dtype: DType, device: torch.device
) -> str:
    """Captures `tokens` predictions of `model`, a checkpoint of ours or a Hugging Face model, into `path`.

    Raises InvalidSource, and for checkpoints UnusableRun and InvalidCorpus.
    """
    activations = capture(_source(model, text, context, device), tokens, dtype, path)
    write(activations, path)
    return _described(activations, path)


def _source(model: str, text: list[Path], context: int, device: torch.device) -> Source:
    if kind_of(Path(model)) == "training":
        trained = sorted(path.parent.name for path in Path(model).glob("curves/*/checkpoints"))
        names = f"one of {', '.join(trained)}" if trained else "none has a checkpoint yet"
        raise InvalidSource(f"{model} holds a whole training run: give a curve of it, {model}/curves/NAME; {names}")
    if (ended := CurveLog(Path(model)).outcome()) is not None and not (Path(model) / "checkpoints").is_dir():
        reason = f": {ended.reason}" if ended.reason else ""
        raise InvalidSource(f"{model} is a curve of a training without a checkpoint ({ended.status}{reason})")
    if not _is_ours(Path(model)):
        return from_huggingface(model, text, context, device)
    if text:
        raise InvalidSource(f"{model} is a checkpoint of `harness train`: it runs on its own held-out text, not --text")
    return from_checkpoint(Path(model), device)


def _is_ours(path: Path) -> bool:
    if (path / "checkpoints").is_dir() or any(path.glob("step-*")):
        return True
    config = path / "config.json"
    return config.is_file() and "training" in json.loads(config.read_text(encoding="utf-8"))


def _described(activations: Activations, path: Path) -> str:
    rows = [(key, _number(value)) for key, value in activations.statistics.items()]
    origin = [f"- {key}: {value}" for key, value in activations.origin.items()]
    return "\n".join(
        [
            f"wrote {path} ({path.stat().st_size / 2**20:.0f} MiB)",
            *origin,
            "",
            tabulate(rows, headers=["statistic", "value"], tablefmt="github", disable_numparse=True),
            "",
            "As a case of a suite:",
            "",
            f"    {suite_case(activations.case)}",
        ]
    )


def _number(value: JsonValue) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def inspect(path: Path, *, tile: int, orders: list[str], device: torch.device) -> str:
    """The sparsity of the captured head in each order, as a table.

    Raises InvalidSource for a file that is none of ours, and for an order that does not exist.
    """
    unknown = [name for name in orders if name not in ORDERS]
    if unknown:
        raise InvalidSource(f"no order {', '.join(unknown)}; there are {', '.join(ORDERS)}")
    try:
        with safe_open(str(path), framework="pt", device=str(device)) as file:
            metadata, names = file.metadata() or {}, sorted(file.keys())
            if absent := [name for name in _TENSORS if name not in names]:
                held = ", ".join(names) or "none"
                raise InvalidSource(f"{path} is no captured file: it has no tensor {', '.join(absent)}; it has {held}")
            if "linear_bias" in names:
                raise InvalidSource(f"{path} has a linear_bias, which inspect leaves out: its softmax is another one")
            input, weight, target = (file.get_tensor(name) for name in _TENSORS)
    except (FileNotFoundError, SafetensorError) as error:
        raise InvalidSource(f"{path} is no captured file: {error}") from error
    if mistakes := list(_mistakes(input, weight, target)):
        raise InvalidSource(f"{path} is no captured file: {'; '.join(mistakes)}")
    softcap = metadata.get("softcap", "None")
    found = [
        sparsity(
            name, input, weight, target,
            order=ORDERS[name](weight, input, tile), tile=tile, softcap=None if softcap == "None" else float(softcap),
        )
        for name in orders
    ]  # fmt: skip
    shape = f"N {input.shape[0]}, D {input.shape[1]}, V {weight.shape[0]}, tiles of {tile} classes"
    return f"{path}: {shape}\n\n{sparsity_table(found)}"


def _mistakes(input: Tensor, weight: Tensor, target: Tensor) -> Iterator[str]:
    """What keeps three tensors from being E (N, D), C (V, D) and the classes of N targets."""
    shapes = f"input {tuple(input.shape)}, linear_weight {tuple(weight.shape)}, target {tuple(target.shape)}"
    if (input.ndim, weight.ndim, target.ndim) != (2, 2, 1) or input.shape != (len(target), weight.shape[1]):
        yield f"{shapes} are not (N, D), (V, D), (N,)"
    elif target.dtype != torch.int64:
        yield f"target is {target.dtype}, not torch.int64"
    elif outside := targets_outside(target, len(weight), IGNORE_INDEX):
        yield f"{outside} of the targets are neither in 0..{len(weight) - 1} nor {IGNORE_INDEX}"
    elif input.dtype != weight.dtype or not input.is_floating_point():
        yield f"input is {input.dtype} and linear_weight {weight.dtype}, not floating point of one kind"


def sparsity_table(found: list[Sparsity]) -> str:
    """A row per order and threshold of a pair's mass; what belongs to the order alone stands in its first row."""
    rows = []
    for each in found:
        shared = [
            f"{100 * each.blocks:.1f} %",
            f"{each.dropped_mass:.2g}",
            f"{each.filter_input_error:.2g} / {each.filter_weight_error:.2g}",
            " / ".join(f"{count:.0f}" for count in each.tiles_of_a_token),
        ]
        for index, tail in enumerate(each.tail):
            rows.append(
                [
                    each.order if index == 0 else "",
                    *(shared if index == 0 else [""] * len(shared)),
                    f"{tail.mass_threshold:.2g}",
                    f"{100 * tail.pairs:.1f} % ({100 * tail.padded:.1f})",
                    f"{tail.input_error:.2g}",
                    f"{tail.weight_error:.2g}",
                ]
            )
    headers = [
        "order", "blocks above 2^-12", "mass the filter drops", "filter: dE / dC error",
        "tiles of a token, 50 / 90 / 99 %", "pairs above", "pairs (padded)", "tail model: dE error", "dC error",
    ]  # fmt: skip
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)
