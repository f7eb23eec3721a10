"""What a file of inputs says that it holds: names, shapes and dtypes, read without torch and without the numbers."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from harness.case import Case

_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64", "I64": "int64", "I32": "int32"}


def wanted_tensors(case: Case) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of every tensor that a file needs for the case."""
    wanted: dict[str, tuple[tuple[int, ...], str]] = {
        "input": ((case.tokens, case.hidden_size), case.dtype),
        "linear_weight": ((case.vocab_size, case.hidden_size), case.dtype),
        "target": ((case.tokens,), "int64"),
    }
    if case.linear_bias:
        wanted["linear_bias"] = ((case.vocab_size,), case.dtype)
    return wanted


def header_mistakes(path: Path, case: Case) -> list[str]:
    """All in the file's header that does not fit the case: tensors that are missing, shapes, dtypes. Empty if it fits.

    Nothing is converted: a file captured in another dtype would be other numbers than those the case claims to compute
    on.
    """
    try:
        with safe_open(str(path), framework="numpy") as file:
            names = set(file.keys())
            slices = {name: file.get_slice(name) for name in wanted_tensors(case) if name in names}
            found = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except SafetensorError as error:
        return [f"not a safetensors file: {error}"]
    mistakes = []
    for name, (shape, dtype) in wanted_tensors(case).items():
        if name not in found:
            mistakes.append(f"has no tensor {name}; it has {', '.join(sorted(names)) or 'none'}")
            continue
        (has_shape, has_dtype), needs = found[name], ", the case needs "
        if has_shape != shape:
            mistakes.append(f"{name} is {has_shape}{needs}{shape}")
        if _DTYPES.get(has_dtype, has_dtype) != dtype:
            mistakes.append(f"{name} is {_DTYPES.get(has_dtype, has_dtype)}{needs}{dtype}")
    if "linear_bias" in names and not case.linear_bias:
        mistakes.append("has linear_bias, but the case says linear_bias: false")
    return mistakes
