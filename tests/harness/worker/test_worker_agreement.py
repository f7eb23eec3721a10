"""agree() passes what is right and names what is wrong."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from harness.case import Case
from harness.worker.agreement import agree, rounding_floor
from harness.worker.eager import EagerErrors, eager_errors
from harness.worker.errors import displaced, gradient_error
from harness.worker.inputs import draw
from harness.worker.oracle import oracle

CPU = torch.device("cpu")
PLENTY = 1 << 30
MAX_EXCESS = 4.0


class Judged:
    """A case with everything that agree() needs, and its true loss and gradients rounded to the dtype."""

    def __init__(self, budget: int = PLENTY, **changes) -> None:
        self.case = Case.model_validate(
            {"tokens": 96, "hidden_size": 32, "vocab_size": 700, "label_smoothing": 0.1, "linear_bias": True, **changes}
        )
        self.tensors = draw(self.case, CPU)
        self.oracle = oracle(self.case, self.tensors, budget)
        self.eager = eager_errors(self.case, self.tensors, self.oracle, budget)
        whole = oracle(self.case, self.tensors, PLENTY)
        self.loss = whole.loss.float()
        dtype = getattr(torch, self.case.dtype)
        self.grads = [whole.grad_input.to(dtype), whole.grad_weight.to(dtype)]
        self.grads.append(None if whole.grad_bias is None else whole.grad_bias.to(dtype))

    def agree(self, loss=None, max_excess=MAX_EXCESS, **replaced):
        names = ("grad_input", "grad_weight", "grad_bias")
        grads = tuple(replaced.get(name, grad) for name, grad in zip(names, self.grads, strict=True))
        loss = self.loss if loss is None else loss
        return agree(self.case, loss, grads, self.oracle, self.eager, max_excess)

    def failures(self, **changed) -> str:
        return "; ".join(self.agree(**changed).failures)


@pytest.fixture(scope="module", params=["float32", "bfloat16", "float16"])
def judged(request):
    return Judged(dtype=request.param, ignored_fraction=0.1)


@pytest.fixture(scope="module")
def fp32():
    return Judged(dtype="float32")


@pytest.mark.parametrize("kind", ["zipf-medium", "gaussian", "uniform", "confident", "smoothed"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_torch_agrees_with_itself(kind, dtype, torch_eager):
    judged = Judged(dtype=dtype, inputs=kind, ignored_fraction=0.1)
    loss, grads = torch_eager(judged.case, judged.tensors, getattr(torch, dtype))
    found = agree(judged.case, loss, grads, judged.oracle, judged.eager, MAX_EXCESS)
    assert found.failures == []
    assert found.grad_input_excess == pytest.approx(1, abs=0.1)
    assert found.grad_weight_excess == pytest.approx(1, abs=0.1)


def test_the_rounded_truth_agrees(judged):
    found = judged.agree()
    assert found.failures == []
    assert found.loss_error < 1e-6
    assert found.grad_input_excess <= 1
    assert 0 < found.grad_input_error < found.grad_input_row_error_p99 < 0.1
    assert found.sampled_rows is None


def test_a_zero_gradient(judged):
    failures = judged.failures(grad_weight=torch.zeros_like(judged.grads[1]))
    assert failures.startswith("grad_weight: error 1 is ")
    assert failures.endswith("(limit 4)")


def test_a_scaled_gradient(fp32):
    found = fp32.agree(grad_input=fp32.grads[0] * 1.02)
    assert len(found.failures) == 1
    assert found.failures[0].startswith("grad_input: error 0.02 is ")
    assert found.grad_input_error == pytest.approx(0.02, rel=1e-3)
    assert "grad_bias: error 0.02" in fp32.failures(grad_bias=fp32.grads[2] * 1.02)


@pytest.mark.parametrize("name", ["grad_input", "grad_weight"])
def test_a_dropped_last_row(judged, name):
    grad = judged.grads[("grad_input", "grad_weight").index(name)].clone()
    row = int(grad.double().norm(dim=1).nonzero()[-1])  # of grad_input the last one that is not ignored
    grad[row] = 0
    error = judged.agree(**{name: grad})
    # of grad_weight it is a row that is hardly ever likely: half precision cannot see it in the norm of the whole
    if name == "grad_input" or judged.case.dtype == "float32":
        assert name in "; ".join(error.failures)


def test_swapped_rows(judged):
    grad = judged.grads[0].clone()
    counted = (judged.tensors.target >= 0).nonzero()[:, 0]
    grad[counted[:2]] = grad[counted[:2].flip(0)]
    assert "grad_input: error" in judged.failures(grad_input=grad)


def test_not_finite(judged):
    grad = judged.grads[1].clone()
    grad[3, :2], grad[5, 0] = torch.nan, torch.inf
    found = judged.agree(grad_weight=grad)
    assert found.failures == [f"grad_weight has 3 non-finite values of {grad.numel()}"]
    assert found.grad_weight_error is None
    assert found.grad_weight_excess is None
    assert found.grad_input_error is not None


def test_missing_and_misshapen(fp32):
    grads = (None, fp32.grads[1].double(), fp32.grads[2][:-1])
    found = agree(fp32.case, fp32.loss, grads, fp32.oracle, fp32.eager, MAX_EXCESS)
    assert found.failures == [
        "grad_input is None",
        "grad_weight is torch.float64 of shape (700, 32), not torch.float32 of shape (700, 32)",
        "grad_bias is torch.float32 of shape (699,), not torch.float32 of shape (700,)",
    ]


def test_a_gradient_in_an_ignored_row(judged):
    grad = judged.grads[0].clone()
    ignored = int((judged.tensors.target < 0).nonzero()[0, 0])
    grad[ignored, :3] = 1e-6
    assert "grad_input has 3 elements other than 0 where the true gradient is exactly 0" in judged.failures(
        grad_input=grad
    )


def test_wrong_loss(fp32):
    assert "loss: error" in fp32.failures(loss=fp32.loss * 1.0001)
    assert fp32.failures(loss=fp32.loss * 1.000001) == ""
    assert "loss has 1 non-finite values of 1" in fp32.failures(loss=torch.tensor(torch.nan))
    assert "loss is torch.float32 of shape (1,), not floating point of shape ()" in fp32.failures(loss=fp32.loss[None])
    assert "loss is torch.int64" in fp32.failures(loss=torch.tensor(3))
    assert fp32.failures(loss=fp32.loss.double()) == ""


def test_loss_in_half_precision_may_be_rounded_to_it(fp32):
    assert fp32.agree(loss=fp32.loss.bfloat16()).failures == []
    assert fp32.agree(loss=fp32.loss.bfloat16()).loss_limit == 2**-7
    assert "loss: error" in fp32.failures(loss=(fp32.loss * 1.02).bfloat16())


def test_loss_of_every_token():
    judged = Judged(reduction="none", dtype="float32", ignored_fraction=0.2)
    assert judged.agree().failures == []
    wrong = judged.loss.clone()
    wrong[int((judged.tensors.target >= 0).nonzero()[-1, 0])] *= 1.01  # one token is enough
    assert "loss: error" in judged.failures(loss=wrong)
    wrong = judged.loss.clone()
    wrong[int((judged.tensors.target < 0).nonzero()[0, 0])] = 1.0  # an ignored token's is 0
    assert "loss: error" in judged.failures(loss=wrong)
    assert "of shape (), not floating point of shape (96,)" in judged.failures(loss=judged.loss.mean())


def test_sum_of_losses_that_nearly_cancel(torch_eager):
    judged = Judged(reduction="sum", dtype="float32", inputs="confident", label_smoothing=0.0, tokens=512)
    loss, grads = torch_eager(judged.case, judged.tensors, torch.float32)
    assert agree(judged.case, loss, grads, judged.oracle, judged.eager, MAX_EXCESS).failures == []


def test_nothing_counts():
    judged = Judged(ignored_fraction=1.0)
    found = judged.agree()
    assert found.failures == []
    assert (found.grad_input_error, found.grad_input_excess, found.loss_error) == (None, None, None)
    assert "loss is 0 where it must be nan: no row counts" in judged.failures(loss=torch.tensor(0.0))
    almost = judged.grads[1].clone()
    almost[3, 3] = 1e-30
    assert "grad_weight has 1 elements other than 0 where the true gradient is exactly 0" in judged.failures(
        grad_weight=almost
    )
    summed = Judged(ignored_fraction=1.0, reduction="sum")
    assert summed.agree().failures == []
    assert "loss is off by 0.1 where it must be 0" in summed.failures(loss=torch.tensor(0.1))


def test_sampled_rows():
    # 5003 rows of fp64 grad_weight, 2.6 MB, do not fit beside a slice as large and 64 tokens, 5.1 MB
    judged = Judged(budget=8_000_000, vocab_size=5003, hidden_size=64)
    found = judged.agree()
    assert found.failures == []
    assert found.sampled_rows == judged.oracle.weight_rows.numel()
    assert "grad_weight: error" in judged.failures(grad_weight=judged.grads[1].roll(1, 0))
    assert "grad_weight is torch.bfloat16 of shape (2, 64)" in judged.failures(grad_weight=judged.grads[1][:2])


def test_a_case_that_proves_nothing_fails(fp32):
    toothless = replace(fp32.eager, grad_input=0.3)
    found = agree(fp32.case, fp32.loss, tuple(fp32.grads), fp32.oracle, toothless, MAX_EXCESS)
    assert len(found.failures) == 1
    assert (
        "the case proves nothing: an all-zero gradient, error 1, would be within 4 x eager's 0.3" in found.failures[0]
    )
    toothless = replace(fp32.eager, grad_input=0.9)
    found = agree(fp32.case, fp32.loss, tuple(fp32.grads), fp32.oracle, toothless, MAX_EXCESS)
    assert "a shifted gradient" in "; ".join(found.failures)
    missing = replace(fp32.eager, grad_input=None)
    found = agree(fp32.case, fp32.loss, tuple(fp32.grads), fp32.oracle, missing, MAX_EXCESS)
    assert "eager arithmetic is not finite here" in found.failures[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_smallest_shapes(dtype, torch_eager):
    judged = Judged(tokens=1, hidden_size=8, vocab_size=2, dtype=dtype, linear_bias=False)
    loss, grads = torch_eager(judged.case, judged.tensors, getattr(torch, dtype))
    assert agree(judged.case, loss, grads, judged.oracle, judged.eager, MAX_EXCESS).failures == []


def test_eager_errors_travel_as_json(judged):
    assert EagerErrors(**json.loads(json.dumps(asdict(judged.eager)))) == judged.eager


def test_errors_by_hand():
    truth = torch.zeros(200, 4, dtype=torch.float64)
    truth[:100] = 1.0
    given = truth.clone()
    given[0] = 2.0  # one row of a hundred off by its own norm
    given[150, 1] = 1.0
    error = gradient_error(given, truth)
    assert error.whole == pytest.approx(((4 + 1) / 400) ** 0.5)
    assert error.row_p99 == 0.0  # the worst of a hundred rows is beyond the 99th percentile
    assert error.stray == 1
    assert displaced(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.bfloat16).tolist() == [[4.0, 3.0], [2.0, 1.0]]


def test_floor_is_one_rounding():
    values = 1 + torch.rand(1 << 16, dtype=torch.float64) / 16  # just above a power of two
    for dtype in ("bfloat16", "float16"):
        error = (values.to(getattr(torch, dtype)).double() - values) / values
        assert rounding_floor(dtype) == pytest.approx(float(error.square().mean().sqrt()), rel=0.1)
