"""Every adapter on a GPU in bf16, against the contract in fp64 on the same rounded tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.case import Case
from implementations.registry import REGISTRY, load
from tests.implementations.reference import loss_and_gradients, make_tensors, worst_error

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

# V is no multiple of any kernel's tile; the logits are 10 MB in fp32, several of torchtune's and Liger's chunks
TOKENS, HIDDEN_SIZE, VOCAB_SIZE = 512, 256, 5003
SETTINGS: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.1},
    {"softcap": 30.0},
    {"softcap": 30.0, "label_smoothing": 0.1},
    {"linear_bias": True},
    {"reduction": "sum", "ignored_fraction": 0.25},
    {"reduction": "none", "ignored_fraction": 0.25},
]
# CCE adds up its gradients in bf16, a rounding for each of 40 vocabulary blocks, and its filter drops mass on top
FILTERED = ["ours-paper", "ours-paper-no-sort", "ours-fused"]  # what the paper's filter drops
LIMITS = {"cce": 1e-1, "cce-no-filter": 1e-1, **dict.fromkeys(FILTERED, 1e-1)}
LIMIT = 2e-2


def tensors_on_gpu(case: Case) -> dict[str, Any]:
    ignored = round(case.ignored_fraction * case.tokens)
    tensors = make_tensors(case.tokens, case.hidden_size, case.vocab_size, ignored=ignored, bias=case.linear_bias)
    return {name: None if tensor is None else tensor.cuda() for name, tensor in tensors.items()}


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("name", REGISTRY)
@pytest.mark.filterwarnings("ignore:linear_cross_entropy. ``options`` ignored")  # with smoothing, as documented
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch's compiler
def test_agrees_with_the_contract(name: str, settings: dict[str, Any]) -> None:
    case = Case(tokens=TOKENS, hidden_size=HIDDEN_SIZE, vocab_size=VOCAB_SIZE, dtype="bfloat16", **settings)
    adapter = load(REGISTRY[name])
    if refused := adapter.supports(case, "cuda"):
        pytest.skip(refused)
    try:
        loss_function = adapter.build()
    except ImportError as error:
        pytest.skip(str(error))
    torch.compiler.reset()  # the variants of all these tests together are more than torch compiles of one function
    arguments = {name: getattr(case, name) for name in ("label_smoothing", "softcap", "reduction")}
    error = worst_error(loss_function, tensors_on_gpu(case), torch.bfloat16, **arguments)
    assert error < LIMITS.get(name, LIMIT)


@pytest.mark.parametrize(
    "name", ["baseline", "liger", "liger-fp32-accum", "cce", "cce-no-filter", "ours-exact", "ours-paper"]
)
def test_with_every_row_ignored_the_sum_and_its_gradients_are_zero(name: str) -> None:
    case = Case(tokens=64, hidden_size=64, vocab_size=1000, reduction="sum", ignored_fraction=1.0)
    adapter = load(REGISTRY[name])
    assert adapter.supports(case, "cuda") is None
    try:
        loss_function = adapter.build()
    except ImportError as error:
        pytest.skip(str(error))
    found = loss_and_gradients(loss_function, tensors_on_gpu(case), torch.bfloat16, reduction="sum")
    assert not any(tensor.any() for tensor in found)
