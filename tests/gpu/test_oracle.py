"""The referee's arithmetic on a GPU: equal to the CPU's, within its memory, and how long it takes.

Run with -s to see the figures that docs/inputs.md quotes.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F

from harness.case import Case
from harness.worker.agreement import agree
from harness.worker.eager import eager_errors, eager_gradients
from harness.worker.errors import gradient_error
from harness.worker.inputs import Tensors, checksum, draw
from harness.worker.oracle import oracle
from harness.worker.statistics import input_statistics

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

GEMMA2 = {"tokens": 8192, "hidden_size": 2304, "vocab_size": 256000}
BUDGET = 12_000_000_000  # bytes
Result = TypeVar("Result")


def moved(tensors: Tensors, device: torch.device) -> Tensors:
    bias = None if tensors.linear_bias is None else tensors.linear_bias.to(device)
    return Tensors(
        tensors.input.to(device),
        tensors.linear_weight.to(device),
        bias,
        tensors.target.to(device),
        tensors.upstream.to(device),
    )


def watched(name: str, function: Callable[[], Result]) -> tuple[Result, int]:
    """The result, and the peak of allocated bytes above what was live before."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    result = function()
    torch.cuda.synchronize()
    peak_bytes = torch.cuda.max_memory_allocated() - before
    left_bytes = torch.cuda.memory_allocated() - before
    print(
        f"{name}: {time.perf_counter() - start:.2f} s, peak {peak_bytes / 1e9:.2f} GB, left {left_bytes / 1e9:.2f} GB"
    )
    return result, peak_bytes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_equals_the_cpu(dtype, softcap):
    case = Case(
        tokens=150,
        hidden_size=64,
        vocab_size=3001,
        dtype=dtype,
        softcap=softcap,
        label_smoothing=0.1,
        ignored_fraction=0.1,
        linear_bias=True,
    )
    here, there = draw(case, torch.device("cpu")), torch.device("cuda")
    assert checksum(here) == checksum(moved(here, there))
    expected = oracle(case, here, BUDGET)
    found = oracle(case, moved(here, there), BUDGET)
    for name in ("loss", "token_loss", "grad_input", "grad_weight", "grad_bias"):
        torch.testing.assert_close(getattr(found, name).cpu(), getattr(expected, name), rtol=1e-11, atol=1e-15)
    errors_here = eager_errors(case, here, expected, BUDGET)
    errors_there = eager_errors(case, moved(here, there), found, BUDGET)
    # fp32's error is the order of its sums; fp16's is underflow, which a CPU rounds elsewhere in a softcap's backward
    tolerance = {"float32": 0.5, "float16": 0.2, "bfloat16": 0.05}[dtype]
    assert errors_there.grad_input == pytest.approx(errors_here.grad_input, rel=tolerance)
    assert errors_there.grad_weight == pytest.approx(errors_here.grad_weight, rel=tolerance)


@pytest.mark.parametrize("kind", ["gaussian", "zipf-medium", "smoothed"])
def test_drawn_alike_in_another_process(kind):
    case = Case.model_validate({"tokens": 2000, "hidden_size": 256, "vocab_size": 50257, "inputs": kind})
    program = (
        "import sys, torch\nfrom harness.case import Case\nfrom harness.worker.inputs import checksum, draw\n"
        "print(checksum(draw(Case.model_validate_json(sys.argv[1]), torch.device('cuda'))))"
    )
    command = [sys.executable, "-c", program, case.model_dump_json()]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert printed.stdout.strip() == checksum(draw(case, torch.device("cuda")))


def test_tf32_does_not_reach_the_oracle_or_eager():
    case = Case(tokens=64, hidden_size=512, vocab_size=1000, dtype="float32")
    torch.set_float32_matmul_precision("high")
    try:
        tensors = draw(case, torch.device("cuda"))
        errors = eager_errors(case, tensors, oracle(case, tensors, BUDGET), BUDGET)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert errors.grad_input < 1e-5
    assert errors.grad_weight < 1e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(("softcap", "beta"), [(None, 0.0), (30.0, 0.1)])
def test_eager_arithmetic_equals_eager(softcap, beta, dtype):
    case = Case(tokens=2048, hidden_size=2304, vocab_size=64000, softcap=softcap, label_smoothing=beta, dtype=dtype)
    tensors = draw(case, torch.device("cuda"))
    truth = oracle(case, tensors, BUDGET)
    errors = eager_errors(case, tensors, truth, BUDGET)
    input, weight = tensors.input.clone().requires_grad_(), tensors.linear_weight.clone().requires_grad_()
    z = F.linear(input, weight)
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    loss = F.cross_entropy(z.float(), tensors.target, label_smoothing=beta)
    loss.backward(tensors.upstream)
    assert input.grad is not None
    assert weight.grad is not None
    tolerance = 0.1 if dtype == "float32" else 0.03
    assert errors.grad_input == pytest.approx(gradient_error(input.grad, truth.grad_input).whole, rel=tolerance)
    assert errors.grad_weight == pytest.approx(gradient_error(weight.grad, truth.grad_weight).whole, rel=tolerance)
    judged = agree(case, loss.detach(), (input.grad, weight.grad, None), truth, errors, 4.0)
    print(f"loss error {judged.loss_error:.2g}, limit {judged.loss_limit:.2g}; {errors}")
    assert judged.failures == []


@pytest.mark.parametrize(
    ("kind", "softcap", "beta"),
    [
        ("zipf-medium", 30.0, 0.1),
        ("zipf-medium", None, 0.0),
        ("zipf-weak", None, 0.1),
        ("zipf-strong", None, 0.1),
        ("gaussian", None, 0.1),
        ("smoothed", None, 0.1),
        ("confident", None, 0.0),
        ("uniform", None, 0.0),
    ],
)
def test_gemma2_head(kind, softcap, beta):
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB of free GPU memory")
    case = Case.model_validate({**GEMMA2, "inputs": kind, "softcap": softcap, "label_smoothing": beta})
    print(f"\n{case.id}")
    tensors, draw_bytes = watched("draw", lambda: draw(case, torch.device("cuda")))
    assert draw_bytes < 6e9
    digest, _ = watched("checksum", lambda: checksum(tensors))
    statistics, _ = watched("statistics", lambda: input_statistics(case, tensors))
    print({name: float(f"{value:.3g}") for name, value in statistics.items()})
    truth, oracle_bytes = watched("oracle", lambda: oracle(case, tensors, BUDGET))
    assert truth.weight_rows is None
    assert oracle_bytes < BUDGET
    errors, eager_bytes = watched("eager", lambda: eager_errors(case, tensors, truth, BUDGET))
    assert eager_bytes < BUDGET
    print(errors)
    gradients = eager_gradients(case, tensors, None, BUDGET)
    judged, agree_bytes = watched(
        "agree", lambda: agree(case, truth.loss.float(), tuple(gradients), truth, errors, 4.0)
    )
    assert agree_bytes < 2e9
    assert judged.failures == []
    assert judged.grad_input_excess == pytest.approx(1)
    sampled, sampled_bytes = watched("oracle, rows sampled", lambda: oracle(case, tensors, 3_000_000_000))
    assert sampled.weight_rows is not None
    assert sampled_bytes < 3e9
    assert checksum(tensors) == digest
    if kind.startswith("zipf") and softcap is None:
        assert 2.8 < statistics["entropy_nats"] < 3.6
        assert 2e-4 < statistics["probability_above_2**-12_share"] < 5e-4
