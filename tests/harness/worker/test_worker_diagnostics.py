"""The diagnostics by hand, and that each shows what the error of the whole hides."""

from dataclasses import replace

import pytest
import torch

from harness.case import Case
from harness.worker.diagnostics import decile_errors, diagnostics, never_a_target
from harness.worker.errors import gradient_error
from harness.worker.inputs import draw
from harness.worker.oracle import oracle

CPU = torch.device("cpu")
CASE = Case.model_validate({"tokens": 200, "hidden_size": 32, "vocab_size": 1500, "ignored_fraction": 0.1})
LIMIT = 0.012  # about what four times eager's error in bf16 allows


@pytest.fixture(scope="module")
def tensors():
    return draw(CASE, CPU)


@pytest.fixture(scope="module")
def truth(tensors):
    return oracle(CASE, tensors, 1 << 30)


def look(truth, tensors, grad_input=None, grad_weight=None):
    given = (
        truth.grad_input if grad_input is None else grad_input,
        truth.grad_weight if grad_weight is None else grad_weight,
    )
    return diagnostics(*given, truth, tensors.target)


def test_the_truth_has_nothing_to_show(truth, tensors):
    found = look(truth, tensors)
    assert found.grad_input_slope == found.grad_weight_slope == 1.0
    assert found.grad_weight_decile_errors == [0.0] * 10 == found.grad_input_decile_errors
    assert found.cold_row_error_median == found.cold_row_error_p99 == found.adamw_step_error == 0.0
    assert found.cold_rows == 1500 - tensors.target[tensors.target >= 0].unique().numel()


def test_a_slope_shows_what_an_error_limit_passes(truth, tensors):
    shrunk = 0.99 * truth.grad_weight
    assert gradient_error(shrunk, truth.grad_weight).whole < LIMIT
    noisy = truth.grad_weight * (1 + 0.01 * torch.randn(truth.grad_weight.shape).sign())
    assert gradient_error(noisy, truth.grad_weight).whole < LIMIT
    assert look(truth, tensors, grad_weight=shrunk).grad_weight_slope == pytest.approx(0.99, abs=1e-9)
    assert look(truth, tensors, grad_weight=noisy).grad_weight_slope == pytest.approx(1, abs=2e-3)
    assert look(truth, tensors, grad_input=0.99 * truth.grad_input).grad_input_slope == pytest.approx(0.99)


def test_deciles_show_small_elements_that_are_gone(truth, tensors):
    threshold = truth.grad_weight.abs().flatten().quantile(0.3)
    flushed = torch.where(truth.grad_weight.abs() < threshold, 0.0, truth.grad_weight)
    assert gradient_error(flushed, truth.grad_weight).whole < LIMIT
    found = look(truth, tensors, grad_weight=flushed)
    assert found.grad_weight_decile_errors == pytest.approx([1, 1, 1, 0, 0, 0, 0, 0, 0, 0], abs=1e-2)
    assert found.adamw_step_error > 0.3  # and an optimizer would not have moved them


def test_cold_rows_show_what_a_filter_forgets(truth, tensors):
    cold = never_a_target(tensors.target, truth)
    assert not cold[tensors.target[tensors.target >= 0]].any()
    dropped = torch.where(cold[:, None], 0.0, truth.grad_weight)
    assert gradient_error(dropped, truth.grad_weight).whole < 0.5
    found = look(truth, tensors, grad_weight=dropped)
    assert found.cold_row_error_median == found.cold_row_error_p99 == 1.0
    warm_only = torch.where(cold[:, None], truth.grad_weight, 0.0)
    assert look(truth, tensors, grad_weight=warm_only).cold_row_error_p99 == 0.0


def test_rows_that_are_missing_and_rows_too_small_to_be_there(truth, tensors):
    given = truth.grad_weight.half()
    assert look(truth, tensors, grad_weight=given).grad_weight_missing_rows == 0  # what underflows is not missing
    given[[3, 700]] = 0
    largest = truth.grad_weight[[3, 700]].abs().amax(1)
    expected = int((largest >= torch.finfo(torch.float16).tiny).sum())
    assert look(truth, tensors, grad_weight=given).grad_weight_missing_rows == expected
    given = truth.grad_input.float()
    given[int((tensors.target >= 0).nonzero()[-1, 0])] = 0
    assert look(truth, tensors, grad_input=given).grad_input_missing_rows == 1  # an ignored token's row is no loss


def test_a_row_at_the_edge_of_the_dtype_is_not_missing(truth, tensors):
    """Of dC only the underflow counts, for rare rows are what is looked for; of dE the other tokens' rows too."""
    counted = int((tensors.target >= 0).nonzero()[-1, 0])
    tiny = torch.finfo(torch.bfloat16).tiny
    for size, of_weight, of_input in ((2.0**10 * tiny, 0, 0), (2.0**30 * tiny, 1, 0), (1.0, 1, 1)):
        grad_input, grad_weight = truth.grad_input.clone(), truth.grad_weight.clone()
        for rows, row in ((grad_input, counted), (grad_weight, 700)):
            rows[row] *= size / rows[row].abs().max()
        small = replace(truth, grad_input=grad_input, grad_weight=grad_weight)
        given = [gradient.bfloat16() for gradient in (grad_input, grad_weight)]
        given[0][counted] = given[1][700] = 0
        found = diagnostics(*given, small, tensors.target)
        assert (found.grad_weight_missing_rows, found.grad_input_missing_rows) == (of_weight, of_input)


def test_the_step_is_that_of_torch(truth, tensors):
    given = truth.grad_weight.bfloat16()
    steps = []
    for gradient in (given, truth.grad_weight):
        weight = torch.zeros(gradient.shape, dtype=torch.float64, requires_grad=True)
        weight.grad = gradient.double()
        torch.optim.AdamW([weight], lr=1.0, weight_decay=0.0).step()
        steps.append(weight.detach())
    expected = float((steps[0] - steps[1]).norm() / steps[1].norm())
    assert look(truth, tensors, grad_weight=given).adamw_step_error == pytest.approx(expected, rel=1e-6)


def test_sampled_rows(tensors):
    case = CASE.model_copy(update={"vocab_size": 5003, "hidden_size": 64})
    drawn = draw(case, CPU)
    whole, sampled = oracle(case, drawn, 1 << 30), oracle(case, drawn, 8_000_000)
    assert sampled.weight_rows is not None
    from_whole = diagnostics(whole.grad_input, whole.grad_weight.float(), sampled, drawn.target)
    from_rows = diagnostics(whole.grad_input, whole.grad_weight.float()[sampled.weight_rows], sampled, drawn.target)
    assert from_whole == from_rows
    targets = set(drawn.target[drawn.target >= 0].tolist())
    assert from_rows.cold_rows == sum(row not in targets for row in sampled.weight_rows.tolist())


def test_nothing_to_compare():
    nothing = CASE.model_copy(update={"ignored_fraction": 1.0})
    drawn = draw(nothing, CPU)
    truth = oracle(nothing, drawn, 1 << 30)
    found = diagnostics(truth.grad_input, truth.grad_weight, truth, drawn.target)
    assert found.grad_weight_slope is None and found.grad_weight_decile_errors == [] and found.cold_rows == 0


def test_a_large_gradient_is_sampled_evenly(monkeypatch):
    monkeypatch.setattr("harness.worker.diagnostics._SAMPLE", 1000)
    truth = torch.randn(400, 30, dtype=torch.float64)
    flushed = torch.where(truth.abs() < truth.abs().flatten().quantile(0.5), 0.0, truth)
    assert decile_errors(flushed, truth, None)[:4] == [1.0] * 4 and decile_errors(flushed, truth, None)[6:] == [0.0] * 4
