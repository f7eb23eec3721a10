"""The function on CPU tensors against torch's own cross-entropy over materialised logits."""

# ruff: noqa: N803 - N, D, V, E and C are the names of the glossary

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import LinearCrossEntropyLoss, linear_cross_entropy
from kernels.linear_cross_entropy.checks import REDUCTIONS


def torch_loss(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    beta: float,
    softcap: float | None,
    reduction: str,
) -> Tensor:
    logits = F.linear(input, weight, bias)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    loss = F.cross_entropy(
        logits.reshape(-1, weight.shape[0]), target.reshape(-1), label_smoothing=beta, reduction=reduction
    )
    return loss.view(target.shape) if reduction == "none" else loss


def leaves(*tensors: Tensor | None, dtype: torch.dtype = torch.float32) -> list[Tensor | None]:
    return [None if t is None else t.detach().to(dtype).requires_grad_() for t in tensors]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    shape=st.lists(st.integers(1, 7), min_size=0, max_size=3),
    D=st.integers(1, 33),
    V=st.integers(1, 90),
    beta=st.floats(0, 1, width=32),
    softcap=st.sampled_from([None, 30.0, 2.0]),
    reduction=st.sampled_from(REDUCTIONS),
    bias=st.booleans(),
    ignored=st.floats(0, 1),
    fused=st.booleans(),
    gradient=st.sampled_from(["exact", "filtered"]),
    seed=st.integers(0, 2**16),
)
def test_any_case(shape, D, V, beta, softcap, reduction, bias, ignored, fused, gradient, seed) -> None:
    torch.manual_seed(seed)
    input, weight = torch.randn(*shape, D), torch.randn(V, D)
    target = torch.where(torch.rand(shape) < ignored, -100, torch.randint(V, shape))
    tensors = leaves(input, weight, torch.randn(V) if bias else None)
    ours = linear_cross_entropy(
        tensors[0], tensors[1], target, linear_bias=tensors[2], label_smoothing=beta, softcap=softcap,
        reduction=reduction, fused=fused, gradient=gradient, filter_eps=None,
    )  # fmt: skip
    expected_tensors = leaves(*tensors)
    expected = torch_loss(*expected_tensors[:2], target, expected_tensors[2], beta, softcap, reduction)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    upstream = torch.randn(ours.shape)
    (ours * upstream).sum().backward()
    if bool((target == -100).all()):  # torch's own gradients are nan for the mean over nothing
        assert all(t is None or t.grad.abs().max() == 0 for t in tensors)
        return
    (expected * upstream).sum().backward()
    for found, wanted in zip(tensors, expected_tensors, strict=True):
        if found is not None:
            torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_have_fp32_losses_and_narrow_gradients(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    input, weight = leaves(torch.randn(20, 16), torch.randn(50, 16), dtype=dtype)
    target = torch.randint(50, (20,))
    loss = linear_cross_entropy(input, weight, target, label_smoothing=0.1)
    wide = torch_loss(input.float(), weight.float(), target, None, 0.1, None, "mean")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, wide, rtol=1e-5, atol=1e-5)
    loss.backward()
    assert input.grad.dtype == weight.grad.dtype == dtype


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    "needed", [(True, False, False), (False, True, False), (False, False, True), (True, True, True)]
)
def test_gradients_for_whichever_operand_needs_one(needed: tuple[bool, ...], fused: bool) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(9, 8), torch.randn(30, 8), torch.randn(30)]
    for tensor, need in zip(tensors, needed, strict=True):
        tensor.requires_grad_(need)
    target = torch.randint(30, (9,))
    linear_cross_entropy(tensors[0], tensors[1], target, linear_bias=tensors[2], fused=fused).backward()
    expected = leaves(*tensors)
    torch_loss(*expected[:2], target, expected[2], 0.0, None, "mean").backward()
    for tensor, need, wanted in zip(tensors, needed, expected, strict=True):
        assert (tensor.grad is not None) == need
        if need:
            torch.testing.assert_close(tensor.grad, wanted.grad, rtol=1e-4, atol=1e-6)


def test_lse_is_differentiable_and_nll_is_free() -> None:
    """A z-loss on the returned lse, against autograd through materialised logits."""
    torch.manual_seed(0)
    input, weight, target = torch.randn(2, 9, 8), torch.randn(30, 8), torch.randint(30, (2, 9))
    target[0, :3] = -100
    ours, theirs = leaves(input, weight), leaves(input, weight)
    loss, lse, nll = linear_cross_entropy(*ours, target, label_smoothing=0.1, return_lse=True, return_nll=True)
    logits = F.linear(*theirs)
    counted = target != -100
    expected_lse = torch.where(counted, logits.logsumexp(-1), 0.0)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-5, atol=1e-5)
    plain = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(2, 9)
    torch.testing.assert_close(nll, plain, rtol=1e-5, atol=1e-5)
    assert lse.requires_grad and not nll.requires_grad
    (loss + 1e-1 * lse.square().mean()).backward()
    (torch_loss(*theirs, target, None, 0.1, None, "mean") + 1e-1 * expected_lse.square().mean()).backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_order_of_the_returned_tuple() -> None:
    input, weight, target = torch.randn(4, 8), torch.randn(5, 8), torch.randint(5, (4,))
    full = linear_cross_entropy(input, weight, target, return_lse=True, return_nll=True)
    assert [t.shape for t in full] == [(), (4,), (4,)]
    loss, lse = linear_cross_entropy(input, weight, target, return_lse=True)
    loss_again, nll = linear_cross_entropy(input, weight, target, return_nll=True)
    assert torch.equal(loss, full[0]) and torch.equal(lse, full[1]) and torch.equal(nll, full[2])
    assert torch.equal(loss_again, loss)


@pytest.mark.parametrize("fused", [False, True])
def test_every_row_ignored(fused: bool) -> None:
    input, weight = leaves(torch.randn(6, 8), torch.randn(20, 8))
    target = torch.full((6,), -100)
    mean = linear_cross_entropy(input, weight, target, label_smoothing=0.1, fused=fused)
    total = linear_cross_entropy(input, weight, target, label_smoothing=0.1, reduction="sum", fused=fused)
    assert mean.isnan() and total == 0
    (mean + total).backward()
    assert input.grad.abs().max() == 0 and weight.grad.abs().max() == 0


@pytest.mark.parametrize("pack", [True, False])
def test_ignored_by_row_not_by_count(pack: bool) -> None:
    """The ignored rows are not the last ones, and ignore_index may be a class."""
    torch.manual_seed(0)
    input, weight = leaves(torch.randn(40, 8), torch.randn(20, 8))
    target = torch.randint(20, (40,))
    target[::3] = 7
    loss = linear_cross_entropy(input, weight, target, ignore_index=7, label_smoothing=0.3, pack_tokens=pack)
    theirs = leaves(input, weight)
    expected = F.cross_entropy(F.linear(*theirs), target, ignore_index=7, label_smoothing=0.3)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    loss.backward()
    expected.backward()
    for a, b in zip((input, weight), theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_no_tokens() -> None:
    input, weight = leaves(torch.randn(0, 8), torch.randn(20, 8))
    loss = linear_cross_entropy(input, weight, torch.zeros(0, dtype=torch.int64), reduction="sum")
    loss.backward()
    assert loss == 0 and weight.grad.abs().max() == 0


def test_strided_operands() -> None:
    torch.manual_seed(0)
    wide, transposed = torch.randn(10, 20), torch.randn(8, 30)
    target = torch.randint(30, (10,))
    found = linear_cross_entropy(wide[:, 4:12], transposed.t(), target)
    expected = F.cross_entropy(wide[:, 4:12] @ transposed, target)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_module() -> None:
    torch.manual_seed(0)
    input, weight, bias, target = torch.randn(4, 8), torch.randn(9, 8), torch.randn(9), torch.randint(9, (4,))
    module = LinearCrossEntropyLoss(label_smoothing=0.2, softcap=5.0, reduction="sum")
    expected = linear_cross_entropy(
        input, weight, target, linear_bias=bias, label_smoothing=0.2, softcap=5.0, reduction="sum"
    )
    assert torch.equal(module(input, weight, target, bias), expected)
    assert "label_smoothing=0.2" in repr(module)
    with pytest.raises(TypeError, match="smoothing: no such setting"):
        LinearCrossEntropyLoss(smoothing=0.1)
    with pytest.raises(ValueError, match=r"label_smoothing: 1\.5"):
        LinearCrossEntropyLoss(label_smoothing=1.5)
    with pytest.raises(NotImplementedError, match="weight: class weights"):
        LinearCrossEntropyLoss(weight=torch.ones(3))
