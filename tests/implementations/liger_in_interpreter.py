"""Runs Liger's adapters in Triton's interpreter and prints what it found as JSON.

A process of its own, for the interpreter is chosen when triton is first imported:
`TRITON_INTERPRET=1 python -m tests.implementations.liger_in_interpreter`.
"""

from __future__ import annotations

import itertools
import json

import torch

from implementations.registry import REGISTRY, load
from tests.implementations.reference import loss_and_gradients, make_tensors, worst_error

NAMES = ("liger", "liger-fp32-accum")
SETTINGS = [
    {"label_smoothing": smoothing, "reduction": reduction}
    for smoothing, reduction in itertools.product((0.0, 0.1), ("mean", "sum", "none"))
]


def key(name: str, settings: dict[str, object], ignored: int, bias: bool) -> str:
    return f"{name} {settings} ignored={ignored} bias={bias}"


def main() -> None:
    built = {name: load(REGISTRY[name]).build() for name in NAMES}
    errors = {
        key(name, settings, ignored, bias): worst_error(
            built[name], make_tensors(ignored=ignored, bias=bias), **settings
        )
        for name, settings, (ignored, bias) in itertools.product(NAMES, SETTINGS, [(0, True), (5, False)])
    }
    loss, *gradients = loss_and_gradients(built["liger"], make_tensors(ignored=16), torch.float32)
    tensors = make_tensors()
    frozen = tensors["linear_weight"].clone().requires_grad_()
    arguments = {
        "linear_bias": None,
        "label_smoothing": 0.0,
        "ignore_index": -100,
        "softcap": None,
        "reduction": "mean",
    }
    leaf = tensors["input"].clone().requires_grad_()
    with torch.no_grad():
        without_grad = built["liger"](leaf, frozen, tensors["target"], **arguments)
    findings = {
        "errors": errors,
        "all_ignored_mean": loss.item(),
        "all_ignored_gradients_are_zero": not any(gradient.any() for gradient in gradients),
        "bf16_loss": str(loss_and_gradients(built["liger"], make_tensors(), torch.bfloat16)[0].dtype),
        "no_grad_loss_requires_grad": without_grad.requires_grad,
    }
    print(json.dumps(findings))


if __name__ == "__main__":
    main()
