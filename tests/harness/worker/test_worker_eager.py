"""Eager arithmetic has the error of real eager, where that fits; and fp32 products are fp32."""

import pytest
import torch

from harness.case import Case
from harness.worker import eager, products
from harness.worker import oracle as oracle_module
from harness.worker.eager import eager_errors, eager_gradients
from harness.worker.errors import gradient_error
from harness.worker.inputs import draw
from harness.worker.oracle import oracle
from harness.worker.products import without_tf32

CPU = torch.device("cpu")
PLENTY = 1 << 30


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("kind", ["zipf-medium", "gaussian", "smoothed", "confident"])
@pytest.mark.parametrize(("beta", "softcap"), [(0.0, None), (0.1, 30.0)])
def test_error_equals_that_of_real_eager(kind, beta, softcap, dtype, torch_eager, monkeypatch):
    if dtype != "float32":  # several chunks and slices; fp32's own error is the order of its sums, see below
        monkeypatch.setitem(eager._MOST_TOKENS, getattr(torch, dtype), 100)
        monkeypatch.setattr(products, "SLICE_BYTES", 1 << 18)
    case = Case.model_validate(
        {"tokens": 256, "hidden_size": 64, "vocab_size": 2001, "inputs": kind, "dtype": dtype, "softcap": softcap}
        | {"label_smoothing": beta, "ignored_fraction": 0.1, "linear_bias": beta > 0}
    )
    tensors = draw(case, CPU)
    truth = oracle(case, tensors, PLENTY)
    errors = eager_errors(case, tensors, truth, PLENTY)
    loss, real = torch_eager(case, tensors, getattr(torch, dtype))
    tolerance = 0.05 if dtype == "float32" else 0.02
    assert errors.grad_input == pytest.approx(gradient_error(real[0], truth.grad_input).whole, rel=tolerance)
    assert errors.grad_weight == pytest.approx(gradient_error(real[1], truth.grad_weight).whole, rel=tolerance)
    if real[2] is not None:
        assert errors.grad_bias == pytest.approx(gradient_error(real[2][None], truth.grad_bias[None]).whole, rel=0.05)
    scale = max(float(truth.loss.abs()), truth.mean_abs_lse)
    assert float((loss.double() - truth.loss).abs()) / scale <= max(4 * errors.loss, 1e-6)


def test_chunks_change_the_error_in_fp32_little(monkeypatch):
    case = Case(tokens=256, hidden_size=64, vocab_size=2001, dtype="float32")
    tensors = draw(case, CPU)
    truth = oracle(case, tensors, PLENTY)
    at_once = eager_errors(case, tensors, truth, PLENTY)
    monkeypatch.setitem(eager._MOST_TOKENS, torch.float32, 100)
    in_chunks = eager_errors(case, tensors, truth, PLENTY)
    assert 0.5 < in_chunks.grad_input / at_once.grad_input < 2  # other kernels, other orders of sums
    assert 0.5 < in_chunks.grad_weight / at_once.grad_weight < 2


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_other_reductions(reduction, torch_eager):
    case = Case(tokens=64, hidden_size=32, vocab_size=500, reduction=reduction, ignored_fraction=0.2)
    tensors = draw(case, CPU)
    truth = oracle(case, tensors, PLENTY)
    errors = eager_errors(case, tensors, truth, PLENTY)
    _, real = torch_eager(case, tensors, torch.bfloat16)
    assert errors.grad_input == pytest.approx(gradient_error(real[0], truth.grad_input).whole, rel=0.02)
    assert errors.grad_weight == pytest.approx(gradient_error(real[1], truth.grad_weight).whole, rel=0.02)
    assert errors.loss is not None
    assert 0 < errors.loss < 1e-2


@pytest.mark.parametrize("most", [512, 30])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_weight_gradient_added_up_in_the_dtype(dtype, most, monkeypatch):
    case = Case(tokens=96, hidden_size=16, vocab_size=300, dtype=dtype)
    tensors = draw(case, CPU)
    monkeypatch.setitem(eager._MOST_TOKENS, tensors.input.dtype, most)  # chunks of one piece and a bit, or one for all
    found = eager.eager_pass(case, tensors, None, PLENTY, pieces=4)
    assert eager.eager_pass(case, tensors, None, PLENTY).accumulated is None
    expected, size = torch.zeros_like(found.accumulated), 24 if most == 512 else 15
    for start in range(0, 96, most):
        chunk = slice(start, start + most)
        _, dz = eager._chunk(case, tensors, chunk, oracle_module.token_gradients(case, tensors, torch.float32)[chunk])
        for part, rows in zip(dz.split(size), tensors.input[chunk].split(size), strict=True):
            expected = expected + (part.float().T @ rows.float()).to(expected.dtype)
    torch.testing.assert_close(found.accumulated, expected)
    errors = [
        gradient_error(g, oracle(case, tensors, PLENTY).grad_weight).whole for g in (found.accumulated, found[0][1])
    ]
    assert errors[0] > 1.05 * errors[1] or dtype == "float32"


def test_rows_of_the_weight_gradient():
    case = Case(tokens=50, hidden_size=16, vocab_size=300)
    tensors = draw(case, CPU)
    rows = torch.tensor([0, 7, 299])
    whole = eager_gradients(case, tensors, None, PLENTY)
    some = eager_gradients(case, tensors, rows, PLENTY)
    torch.testing.assert_close(some.grad_weight, whole.grad_weight[rows])
    assert some.grad_weight.dtype == torch.bfloat16


def test_nothing_counts():
    case = Case(tokens=5, hidden_size=8, vocab_size=30, ignored_fraction=1.0, label_smoothing=0.1)
    tensors = draw(case, CPU)
    gradients = eager_gradients(case, tensors, None, PLENTY)
    assert not gradients.grad_input.any()
    assert not gradients.grad_weight.any()
    errors = eager_errors(case, tensors, oracle(case, tensors, PLENTY), PLENTY)
    assert (errors.grad_input, errors.grad_weight, errors.loss) == (None, None, None)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_tf32_is_off_inside_and_as_it_was_outside(precision):
    original = torch.get_float32_matmul_precision()
    flags = torch.backends.cuda.matmul
    try:
        torch.set_float32_matmul_precision(precision)
        before = flags.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision
        with without_tf32():
            assert flags.fp32_precision == "ieee"
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        assert (flags.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision) == before
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(original)


def test_tf32_set_by_the_newer_interface_comes_back():
    flags = torch.backends.cuda.matmul
    before = flags.fp32_precision
    try:
        flags.fp32_precision = "tf32"  # the older interface now refuses to be read
        with without_tf32():
            assert flags.fp32_precision == "ieee"
        assert flags.fp32_precision == "tf32"
    finally:
        flags.fp32_precision = before
