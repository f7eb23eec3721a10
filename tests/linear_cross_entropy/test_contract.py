"""Errors, autograd, autocast and torch.compile: what a caller relies on beside the numbers."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels import linear_cross_entropy
from kernels.linear_cross_entropy import operators
from kernels.linear_cross_entropy.products import without_tf32


def operands(dtype: torch.dtype = torch.float32, grad: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    input, weight = torch.randn(12, 8, dtype=dtype), torch.randn(30, 8, dtype=dtype)
    return input.requires_grad_(grad), weight.requires_grad_(grad), torch.randint(30, (12,))


BAD = [
    (dict(weight=torch.ones(30)), NotImplementedError, "weight: class weights"),
    (dict(target=torch.rand(12, 30)), NotImplementedError, "target: soft targets"),
    (dict(target=torch.zeros(12, dtype=torch.bool)), TypeError, "target: dtype torch.bool"),
    (dict(target=torch.zeros(3, dtype=torch.int64)), ValueError, r"target: shape \(3,\)"),
    (dict(input=torch.zeros(12, 8, dtype=torch.float64)), TypeError, "input: dtype torch.float64"),
    (dict(input=torch.zeros(12, 9)), ValueError, "input: last dimension 9"),
    (dict(input=torch.tensor(1.0)), ValueError, "input: a scalar"),
    (dict(linear_weight=torch.zeros(30, 8, 1)), ValueError, "linear_weight: shape"),
    (dict(linear_weight=torch.zeros(0, 8)), ValueError, "linear_weight: shape"),
    (dict(linear_weight=torch.zeros(30, 8, dtype=torch.bfloat16)), TypeError, "linear_weight: dtype torch.bfloat16"),
    (dict(linear_bias=torch.zeros(29)), ValueError, r"linear_bias: shape \(29,\)"),
    (dict(linear_bias=torch.zeros(30, dtype=torch.float16)), TypeError, "linear_bias: dtype torch.float16"),
    (dict(linear_weight=torch.zeros(30, 8, device="meta")), ValueError, "linear_weight: on meta"),
    (dict(label_smoothing=-0.1), ValueError, "label_smoothing: -0.1"),
    (dict(label_smoothing=1.1), ValueError, "label_smoothing: 1.1"),
    (dict(label_smoothing=float("nan")), ValueError, "label_smoothing: nan"),
    (dict(reduction="avg"), ValueError, "reduction: 'avg'"),
    (dict(label_smoothing="0.1"), TypeError, r"label_smoothing: '0.1'; it must be a number in \[0, 1\]"),
    (dict(label_smoothing=None), TypeError, "label_smoothing: None; it must be a number"),
    (dict(softcap=0.0), ValueError, "softcap: 0.0"),
    (dict(softcap="30"), TypeError, "softcap: '30'; it must be a positive, finite number, or None"),
    (dict(filter_eps="0.1"), TypeError, "filter_eps: '0.1'; it must be a number"),
    (dict(gradient_tolerance="0.1"), TypeError, "gradient_tolerance: '0.1'; it must be a number"),
    (dict(softcap=float("inf")), ValueError, "softcap: inf"),
    (dict(gradient="fast"), ValueError, "gradient: 'fast'"),
    (dict(filter_eps=0.0), ValueError, "filter_eps: 0.0"),
    (dict(ignore_index=1.5), TypeError, "ignore_index: 1.5"),
]


@pytest.mark.parametrize(("change", "kind", "message"), BAD, ids=[message for _, _, message in BAD])
def test_bad_arguments_are_named(change: dict, kind: type[Exception], message: str) -> None:
    input, weight, target = operands()
    arguments = {"input": input, "linear_weight": weight, "target": target} | change
    with pytest.raises(kind, match=message):
        linear_cross_entropy(**arguments)


def test_targets_out_of_range() -> None:
    input, weight, target = operands()
    target[2], target[5] = 30, -7
    loss = linear_cross_entropy(input, weight, target, reduction="none", label_smoothing=0.1)
    assert loss[[2, 5]].isnan().all() and loss.isnan().sum() == 2
    loss.nansum().backward()
    assert input.grad[[2, 5]].abs().max() == 0 and weight.grad.isfinite().all()
    with pytest.raises(ValueError, match=r"target: 2 classes outside \[0, 30\), for example 30"):
        linear_cross_entropy(input, weight, target, check_targets=True)


@pytest.mark.parametrize(("dtype", "value", "vocab"), [("uint8", 50, 300), ("int8", 100, 200)])
def test_targets_of_narrow_dtypes_are_checked_as_numbers(dtype: str, value: int, vocab: int) -> None:
    """300 is no uint8 and 200 no int8: compared in the target's own dtype they wrap around."""
    input, weight = torch.randn(4, 8), torch.randn(vocab, 8)
    target = torch.full((4,), value, dtype=getattr(torch, dtype))
    checked = linear_cross_entropy(input, weight, target, check_targets=True)
    assert checked == linear_cross_entropy(input, weight, target.long())
    target[0] = 156 if dtype == "uint8" else -1  # 156 is -100 modulo 256
    if dtype == "uint8":
        weight = weight[:100]
    with pytest.raises(ValueError, match=r"target: 1 classes outside"):
        linear_cross_entropy(input, weight, target, check_targets=True)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_tf32_is_off_inside_and_as_it_was_after(precision: str) -> None:
    """`allow_tf32` is what cuBLAS's products ask for; it raises where torch's two interfaces disagree."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with without_tf32():
            assert torch.backends.cuda.matmul.allow_tf32 is False
        assert torch.backends.cuda.matmul.allow_tf32 is (precision != "highest")
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


def test_autocast_leaves_fp64_alone_as_it_does_for_linear() -> None:
    input, weight, target = operands(torch.float64)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match=r"input: dtype torch.float64"):
        linear_cross_entropy(input, weight, target)


def test_second_backward_of_fused_is_a_clear_error() -> None:
    input, weight, target = operands()
    loss = linear_cross_entropy(input, weight, target, fused=True)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"fused=True.*nothing left for a second one"):
        loss.backward()
    loss = linear_cross_entropy(input, weight, target)
    loss.backward(retain_graph=True)
    loss.backward()


class Allocations(TorchDispatchMode):
    """Counts results of a shape whose memory is new: neither an argument's nor a view of one."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.names = shape, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        old = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for t in tree_leaves(result):
            if isinstance(t, Tensor) and t.shape == self.shape and t.untyped_storage().data_ptr() not in old:
                self.names.append(str(func))
        return result


@pytest.mark.parametrize("engine", ["backward", "grad"])
@pytest.mark.parametrize("upstream", [1.0, 0.7])
def test_fused_hands_its_gradients_out_without_a_copy(engine: str, upstream: float) -> None:
    """The stored dC becomes weight.grad itself, and nothing of its size is made beside it: either doubles the peak."""
    input, weight, target = operands()
    stored = []
    original = operators.scale_

    def watch(*arguments: Tensor) -> None:
        stored.extend(argument.data_ptr() for argument in arguments[:2])
        original(*arguments)

    loss, _ = linear_cross_entropy(input, weight, target, fused=True, return_nll=True)
    with pytest.MonkeyPatch.context() as patch, Allocations(weight.shape) as allocations:
        patch.setattr(operators, "scale_", watch)
        if engine == "backward":
            loss.backward(torch.tensor(upstream))
            found = input.grad, weight.grad
        else:
            found = torch.autograd.grad(loss, (input, weight), torch.tensor(upstream))
    assert [gradient.data_ptr() for gradient in found] == stored
    arithmetic = {"aten.mul.Tensor", "aten._to_copy.default"}  # of the CPU's scale_; the GPU's is a kernel
    assert set(allocations.names) <= arithmetic
    expected = torch.autograd.grad(linear_cross_entropy(input, weight, target), (input, weight))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, upstream * b)


@pytest.mark.parametrize("fused", [False, True])
def test_gradient_under_accumulation(fused: bool) -> None:
    """Two losses on one head add up."""
    input, weight, target = operands()
    for _ in range(2):
        linear_cross_entropy(input, weight, target, fused=fused).backward()
    once = torch.autograd.grad(linear_cross_entropy(input, weight, target), weight)[0]
    torch.testing.assert_close(weight.grad, 2 * once)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_compiles_without_a_graph_break(fused: bool, reduction: str) -> None:
    torch._dynamo.reset()
    input, weight, target = operands()

    def step(input: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        loss, nll = linear_cross_entropy(
            input * 2, weight, target, label_smoothing=0.1, fused=fused, return_nll=True, reduction=reduction
        )
        return (loss * 0.7).sum() + 0 * nll.sum()

    plain = torch.autograd.grad(step(input, weight, target), (input, weight))
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(input, weight, target), (input, weight))
    for a, b in zip(found, plain, strict=True):
        torch.testing.assert_close(a, b)


def test_dynamic_number_of_tokens_compiles_once() -> None:
    torch._dynamo.reset()
    _, weight, _ = operands()
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (5, 9, 33):
        input, target = torch.randn(tokens, 8), torch.randint(30, (tokens,))
        torch.testing.assert_close(compiled(input, weight, target), linear_cross_entropy(input, weight, target))


def test_autocast_casts_as_linear_does() -> None:
    input, weight, target = operands()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(input, weight.detach().bfloat16(), target)
    expected = linear_cross_entropy(input.bfloat16(), weight.bfloat16(), target)
    assert torch.equal(loss, expected) and loss.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        linear_cross_entropy(input, weight, target).backward()
    assert input.grad.dtype == weight.grad.dtype == torch.float32


def test_no_grad_stores_nothing() -> None:
    input, weight, target = operands()
    with torch.no_grad():
        assert not linear_cross_entropy(input, weight, target, fused=True).requires_grad
    input, weight, target = operands(grad=False)
    assert linear_cross_entropy(input, weight, target, fused=True).grad_fn is None


@pytest.mark.parametrize("name", ["forward", "fused"])
def test_operators_pass_torchs_own_checks(name: str) -> None:
    input, weight, target = operands()
    settings = (0.1, -100, 0.0, True, False, 0.0, False)
    extra = (True, True, True, False) if name == "fused" else ()
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    operator = getattr(torch.ops.linear_cross_entropy, name).default
    torch.library.opcheck(operator, (input, weight, None, target, *settings, *extra), test_utils=checks)


def test_importing_neither_needs_nor_loads_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None; from kernels import linear_cross_entropy; "
        "assert callable(linear_cross_entropy)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_function_keeps_its_name_whatever_is_imported_first() -> None:
    code = (
        "import kernels.linear_cross_entropy.slices; from kernels import linear_cross_entropy; "
        "assert callable(linear_cross_entropy)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
