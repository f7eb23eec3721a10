"""The oracle against autograd of torch's own loss in float64."""

import pytest
import torch

from harness.case import Case
from harness.worker import oracle as oracle_module
from harness.worker.inputs import draw
from harness.worker.oracle import oracle, sampled_rows

CPU = torch.device("cpu")
PLENTY = 1 << 30


def small(**changes) -> Case:
    return Case.model_validate({"tokens": 37, "hidden_size": 16, "vocab_size": 300, "seed": 1, **changes})


def close(found, true):
    torch.testing.assert_close(found, true, rtol=1e-11, atol=1e-14, equal_nan=True)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("softcap", [None, 30.0, 2.0])
@pytest.mark.parametrize("ignored", [0.0, 0.3, 1.0])
def test_equals_autograd(reduction, beta, softcap, ignored, torch_eager, monkeypatch):
    monkeypatch.setattr(oracle_module, "_MOST_TOKENS", 16)  # three chunks, the last one ragged
    case = small(
        reduction=reduction, label_smoothing=beta, softcap=softcap, ignored_fraction=ignored, linear_bias=beta > 0
    )
    tensors = draw(case, CPU)
    loss, (grad_input, grad_weight, grad_bias) = torch_eager(case, tensors, torch.float64)
    truth = oracle(case, tensors, PLENTY)
    assert truth.weight_rows is None
    close(truth.loss, loss)
    close(truth.grad_input, grad_input)
    close(truth.grad_weight, grad_weight)
    if grad_bias is None:
        assert truth.grad_bias is None
    else:
        close(truth.grad_bias, grad_bias)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["zipf-strong", "confident", "uniform", "smoothed"])
def test_equals_autograd_on_every_regime(kind, dtype, torch_eager):
    case = small(inputs=kind, dtype=dtype, label_smoothing=0.1)
    tensors = draw(case, CPU)
    loss, (grad_input, grad_weight, _) = torch_eager(case, tensors, torch.float64)
    truth = oracle(case, tensors, PLENTY)
    close(truth.loss, loss)
    close(truth.grad_input, grad_input)
    close(truth.grad_weight, grad_weight)


def test_nothing_counts():
    for reduction in ("mean", "sum"):
        case = small(ignored_fraction=1.0, reduction=reduction, label_smoothing=0.1, linear_bias=True)
        truth = oracle(case, draw(case, CPU), PLENTY)
        assert truth.loss.isnan() if reduction == "mean" else truth.loss == 0
        for gradient in (truth.grad_input, truth.grad_weight, truth.grad_bias):
            assert not gradient.any()  # exactly zero, and not nan
        assert (truth.mean_abs_lse, truth.counted_rows) == (0.0, 0)


def test_sampled_rows_equal_the_whole():
    case = small(tokens=100, vocab_size=5003, label_smoothing=0.1, softcap=30.0, linear_bias=True, hidden_size=64)
    tensors = draw(case, CPU)
    whole = oracle(case, tensors, PLENTY)
    # what does not fit is fp64 grad_weight, 2.6 MB, beside a chunk of 64 tokens, 7.7 MB, and a slice, 2.6 MB
    sampled = oracle(case, tensors, 11_000_000)
    rows = sampled.weight_rows
    assert rows is not None
    close(sampled.grad_weight, whole.grad_weight[rows])
    close(sampled.grad_input, whole.grad_input)
    close(sampled.grad_bias, whole.grad_bias)
    close(sampled.loss, whole.loss)


def test_sampled_rows_cover_every_kind_of_row():
    case = small(tokens=600, vocab_size=9001)
    tensors = draw(case, CPU)
    rows = sampled_rows(tensors)
    assert rows.equal(sampled_rows(tensors))
    assert rows.equal(rows.unique())
    assert 1000 < rows.numel() <= 2100
    chosen = set(rows.tolist())
    assert set(range(8960, 9001)) <= chosen  # the last partial tile of 256
    targets = tensors.target[tensors.target >= 0]
    assert set(targets.unique().tolist()) <= chosen
    assert len(chosen - set(targets.tolist())) > 500
    assert int((tensors.input.float().mean(0) @ tensors.linear_weight.float().T).argmax()) in chosen


def test_sampled_rows_of_a_tiny_vocabulary():
    tensors = draw(small(tokens=1, vocab_size=2), CPU)
    assert sampled_rows(tensors).tolist() == [0, 1]


def test_a_budget_that_holds_nothing():
    case = small()
    with pytest.raises(ValueError, match="memory_budget_bytes is 1000; the oracle of N 37, D 16, V 300 needs at least"):
        oracle(case, draw(case, CPU), 1000)
