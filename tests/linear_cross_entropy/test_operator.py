"""Operators are called around the dispatcher in plain eager code, and through it where somebody watches."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from kernels.linear_cross_entropy import linear_cross_entropy, operators
from kernels.linear_cross_entropy.operator import operator


def operands(requires_grad: bool = True) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    input = torch.randn(6, 8, generator=generator).requires_grad_(requires_grad)
    weight = torch.randn(11, 8, generator=generator).requires_grad_(requires_grad)
    return input, weight, torch.randint(0, 11, (6,), generator=generator)


class Seen(TorchDispatchMode):
    """Names of the operators of this package that pass by."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "linear_cross_entropy":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


class Subclass(torch.Tensor):
    pass


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which operators the dispatcher was asked for."""
    asked: list[str] = []
    for name in ("forward", "backward", "fused"):
        known = getattr(operators, name)
        registered = known.registered
        call = lambda *inputs, name=name, registered=registered: (asked.append(name), registered(*inputs))[1]  # noqa: E731
        monkeypatch.setattr(known, "registered", call)
    return asked


def step(input: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, ...]:
    loss = linear_cross_entropy(input, weight, target, label_smoothing=0.1, gradient="exact")
    return loss, *torch.autograd.grad(loss, (input, weight))


def test_plain_eager_code_goes_around_the_dispatcher(calls: list[str]) -> None:
    step(*operands())
    input, weight, target = operands()
    linear_cross_entropy(input, weight, target, fused=True).backward()
    assert calls == []


def test_a_dispatch_mode_sees_the_operators_and_gets_the_same_numbers() -> None:
    given = operands()
    with Seen() as seen:
        watched = step(*given)
    assert seen.names == ["forward", "backward"]
    for a, b in zip(step(*given), watched, strict=True):
        assert torch.equal(a, b)


def test_a_tensor_subclass_goes_through_the_dispatcher(calls: list[str]) -> None:
    input, weight, target = operands(requires_grad=False)
    linear_cross_entropy(input.as_subclass(Subclass), weight, target)
    assert calls == ["forward"]


def test_a_parameter_is_an_ordinary_tensor(calls: list[str]) -> None:
    input, weight, target = operands()
    linear_cross_entropy(input, torch.nn.Parameter(weight.detach()), target).backward()
    assert calls == []


def test_functorch_goes_through_the_dispatcher(calls: list[str]) -> None:
    input, weight, target = operands(requires_grad=False)
    with pytest.raises(RuntimeError, match="functorch transforms"):  # an operator's word for it, before and after
        torch.func.grad(lambda e: linear_cross_entropy(e, weight, target, gradient="exact"))(input)
    assert calls == ["forward"]


def test_a_second_backward_is_an_error_either_way() -> None:
    for watched in (False, True):
        input, weight, target = operands()
        loss = linear_cross_entropy(input, weight, target, gradient="exact")
        if watched:
            with Seen():
                loss = linear_cross_entropy(input, weight, target, gradient="exact")
        (first,) = torch.autograd.grad(loss, input, create_graph=True)
        with pytest.raises(RuntimeError):
            torch.autograd.grad(first.sum(), weight)


def test_without_grad_there_is_no_graph(calls: list[str]) -> None:
    input, weight, target = operands()
    with torch.no_grad():
        assert not linear_cross_entropy(input, weight, target).requires_grad
    assert not linear_cross_entropy(input.detach(), weight.detach(), target).requires_grad
    assert calls == []


def test_a_leaf_changed_between_forward_and_backward_is_noticed() -> None:
    input, weight, target = operands()
    loss = linear_cross_entropy(input, weight, target, gradient="exact")
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_checkpointing_recomputes_the_same_step() -> None:
    input, weight, target = operands()
    plain = step(input, weight, target)
    loss = checkpoint(lambda e, c: linear_cross_entropy(e, c, target, label_smoothing=0.1), input, weight,
                      use_reentrant=False)  # fmt: skip
    for a, b in zip(plain, (loss, *torch.autograd.grad(loss, (input, weight))), strict=True):
        assert torch.equal(a, b)


def test_an_implementation_is_never_under_autocast() -> None:
    """A product of fp32 operands would be in bf16 there."""
    matrix = torch.randn(4, 4)
    product = operator("linear_cross_entropy_test::square", "(Tensor matrix) -> Tensor")(lambda m: m @ m)
    for call in (product, product.registered):
        with torch.autocast("cpu", torch.bfloat16):
            assert call(matrix).dtype == torch.float32
