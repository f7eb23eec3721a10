"""Memory of the kernels on a GPU, as allocator peaks, and matrices whose offsets do not fit 32 bits."""

# ruff: noqa: N806 - N, D, V, E and C are the names of the glossary
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from kernels import linear_cross_entropy
from kernels.linear_cross_entropy import forward
from kernels.linear_cross_entropy.config import POINTER_TILE
from kernels.linear_cross_entropy.problem import Problem
from tests.linear_cross_entropy.cases import error

MIB = 2**20


@pytest.mark.parametrize("frozen", ["input", "weight"])
@pytest.mark.parametrize("gradient", ["exact", "filtered"])
def test_a_frozen_operand_costs_no_memory(frozen: str, gradient: str) -> None:
    N, D, V = 2048, 1024, 65536
    input = torch.randn(N, D, device="cuda", dtype=torch.bfloat16, requires_grad=frozen != "input")
    weight = torch.randn(V, D, device="cuda", dtype=torch.bfloat16).mul_(0.03).requires_grad_(frozen != "weight")
    target = torch.randint(V, (N,), device="cuda")
    peak = peak_bytes(lambda: linear_cross_entropy(input, weight, target, gradient=gradient).backward(), input, weight)
    gradients = 2 * N * D if frozen == "weight" else 2 * V * D
    assert peak - gradients <= 4 * N * D + 66 * MIB


def peak_bytes(call: Callable[[], object], *leaves: Tensor) -> int:
    """Allocator peak above what was live, with everything that is allocated once (workspaces) warmed up."""
    for warm in (True, False):
        for leaf in leaves:
            leaf.grad = None
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        if not warm:
            return torch.cuda.max_memory_allocated() - before
    raise AssertionError("unreachable")


GRADIENTS = (8192 + 256000) * 2304 * 2


@pytest.fixture(scope="module")
def gemma2() -> tuple[Tensor, Tensor, Tensor]:
    if torch.cuda.get_device_properties(0).total_memory < 16e9:
        pytest.skip("needs 16 GB of device memory")
    generator = torch.Generator("cuda").manual_seed(0)
    input = torch.randn(8192, 2304, device="cuda", generator=generator).bfloat16()
    weight = torch.randn(256000, 2304, device="cuda", generator=generator).mul_(0.03).bfloat16()
    return input, weight, torch.randint(256000, (8192,), device="cuda", generator=generator)


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_forward_memory_of_the_gemma2_head(gemma2, beta: float) -> None:
    input, weight, target = gemma2

    def call() -> None:
        with torch.no_grad():
            linear_cross_entropy(input, weight, target, label_smoothing=beta)

    assert peak_bytes(call) <= 2 * MIB


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        (dict(), 1.15),
        (dict(softcap=30.0), 1.15),
        (dict(gradient="filtered"), 1.10),
        (dict(gradient="filtered", sort_vocabulary=False), 1.15),
        (dict(fused=True), 1.2),
        (dict(fused=True, gradient="filtered"), 1.2),
    ],
    ids=str,
)
def test_memory_of_the_gemma2_head(gemma2, options: dict, limit: float) -> None:
    input, weight, target = gemma2[0].requires_grad_(), gemma2[1].requires_grad_(), gemma2[2]
    peak = peak_bytes(
        lambda: linear_cross_entropy(input, weight, target, label_smoothing=0.1, **options).backward(), input, weight
    )
    print(f"{options}: peak {peak / MIB:.0f} MiB, {peak / GRADIENTS:.3f} x the gradients")
    assert peak <= limit * GRADIENTS
    input.grad = weight.grad = None
    before = torch.cuda.memory_allocated()
    loss = linear_cross_entropy(input, weight, target, label_smoothing=0.1, **options)
    retained = torch.cuda.memory_allocated() - before
    assert retained <= (GRADIENTS + 2 * MIB if options.get("fused") else 1 * MIB)
    del loss
    input.requires_grad_(False)
    weight.requires_grad_(False)


def test_offsets_beyond_two_to_the_31() -> None:
    """V * D = 2.3e9 and N * V = 4.9e9 elements: a 32-bit offset would wrap. Both paths, sampled rows."""
    if torch.cuda.get_device_properties(0).total_memory < 60e9:
        pytest.skip("needs 60 GB of device memory")
    N, D, V = 4096, 2000, 1_200_000
    generator = torch.Generator("cuda").manual_seed(0)
    input = torch.randn(N, D, device="cuda", generator=generator).bfloat16().requires_grad_()
    weight = torch.empty(V, D, device="cuda", dtype=torch.bfloat16)
    for rows in weight.split(100_000):
        rows.copy_(torch.randn(rows.shape, device="cuda", generator=generator).mul_(0.05))
    weight.requires_grad_()
    target = torch.randint(V - 1000, V, (N,), device="cuda", generator=generator)
    for method in ("exact", "filtered"):
        loss = linear_cross_entropy(input, weight, target, label_smoothing=0.1, gradient=method)
        loss.backward()
        statistics = forward.statistics(Problem(input.detach(), weight.detach(), None, target, 0.1, -100, 0.0))
        last = slice(V - 2000, V)
        with torch.no_grad():
            z = input.double() @ weight[last].double().t()
            dz = (z - statistics.lse.double()[:, None]).exp() - 0.1 / V
            dz[torch.arange(N, device="cuda"), target - last.start] -= 0.9
            expected = dz.t() @ input.double() / N
        assert error(weight.grad[last], expected) < 2e-2
        assert bool(input.grad.isfinite().all())
        input.grad = weight.grad = None
    pointers = forward.statistics(
        Problem(input.detach()[:256], weight.detach(), None, target[:256], 0.1, -100, 0.0), POINTER_TILE
    )
    torch.testing.assert_close(pointers.loss, statistics.loss[:256], rtol=1e-4, atol=1e-4)
