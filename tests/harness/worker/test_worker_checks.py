"""Each check of the agreement phase passes what is right and names what is planted."""

import gc
import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from harness.case import Case
from harness.cost import gradient_floor_bytes
from harness.record import Agreement, Status
from harness.selftest import planted
from harness.worker import judging
from harness.worker import referee as referees
from harness.worker.call import Call
from harness.worker.failure import classify
from harness.worker.identities import an_order, constant_column, permuted_vocabulary, shift_for
from harness.worker.inputs import digests, draw
from harness.worker.oracle import DoesNotFit, oracle
from harness.worker.poison import poisoned_memory
from harness.worker.session import Sessions
from harness.worker.sketch import Sketch, deviation, project, sketch
from harness.worker.yardstick import MassYardstick, Yardstick, yardstick

CPU = torch.device("cpu")
CASE = {"tokens": 512, "hidden_size": 48, "vocab_size": 1000, "label_smoothing": 0.1, "inputs": {"kind": "gaussian"}}


def judged(name: str, worker: Sessions | None = None, **changes) -> Agreement:
    """As a run would: the referee's yardstick and the worker's answer, both through JSON."""
    case = Case.model_validate(CASE | changes)
    common = {"case": case.model_dump(mode="json"), "device": "cpu", "memory_fraction": 0.9}
    referee, worker = Sessions(), worker or Sessions()
    referee.handle({"do": "open_referee", **common})
    eager = json.loads(json.dumps(referee.handle({"do": "eager_errors"})))
    path = name if ":" in name else f"harness.selftest.planted:{name}"
    worker.handle({"do": "open", "path": path, "options": {}, **common})
    answer = Agreement.model_validate(worker.handle({"do": "agree", "eager": eager, "max_excess": 4.0}))
    return Agreement.model_validate_json(answer.model_dump_json())


@pytest.fixture(autouse=True)
def no_limit_on_memory(monkeypatch):
    """A worker limits its own process, which here is the one that runs the tests."""
    monkeypatch.setattr("harness.worker.device.limit_memory", lambda device, fraction: None)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dtype": "float32"},
        {"dtype": "float16", "inputs": "zipf-medium", "label_smoothing": 0.0},
        {"softcap": 30.0},
        {"reduction": "none", "ignored_fraction": 0.2},
        {"reduction": "sum", "linear_bias": True, "inputs": "confident", "label_smoothing": 0.0},
        {"tokens": 1, "vocab_size": 17, "hidden_size": 8},
        {"tokens": 5, "vocab_size": 2, "hidden_size": 1, "dtype": "float32"},
    ],
)
@pytest.mark.parametrize("name", ["right", "implementations.ours:exact"])
def test_what_is_right_passes_every_check(name, changes):
    found = judged(name, **changes)
    assert found.failures == []
    checks = found.checks
    applicable = {"linearity", "permutation", "repeat"} | (set() if "softcap" in changes else {"mass", "shift"})
    assert {
        name for name in ("mass", "linearity", "permutation", "shift", "repeat") if getattr(checks, name)
    } == applicable
    assert checks.repeats_bitwise and checks.repeat.deviation == 0
    assert checks.claims_determinism == (name != "right")


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nothing_counts(reduction):
    found = judged("right", ignored_fraction=1.0, reduction=reduction)
    assert found.failures == [] and found.checks.mass is None and found.checks.shift is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("filters_small_rows", "the rows of grad_weight should add up to zero"),
        ("drops_the_last_tile", "the rows of grad_weight should add up to zero"),
        ("loses_the_sign", "is not linear in the upstream gradient: 2 (limit"),
        ("stale_cache", "depends on the order of the vocabulary, or is not of the weights it was given"),
        ("forgets_the_maximum", "changes when all logits of a token are shifted: not finite"),
        ("reads_unwritten_memory", "reads memory that it has not written"),
        ("claims_determinism", "claims to be deterministic, but two calls differ in grad_weight"),
        ("mutates_its_input", "the call changed its inputs: input"),
        ("accumulates_in_half_precision", "grad_weight: error"),
        ("zero_weight_gradient", "grad_weight: error 1"),
    ],
)
def test_what_is_planted_is_named(name, words):
    failures = "; ".join(judged(name).failures)
    assert words in failures, failures


def test_checks_find_what_the_oracle_does_not():
    """On the tensors of the case these are right; only another call shows them."""
    for name in ("loses_the_sign", "stale_cache", "forgets_the_maximum", "claims_determinism"):
        found = judged(name)
        assert found.grad_input_excess < 4 and found.grad_weight_excess < 4 and found.loss_error < found.loss_limit
        assert len(found.failures) == 1, found.failures


def test_a_last_tile_of_rare_classes_is_missed_by_the_norm_and_not_by_counting():
    """Eight rows that hardly any token is about: 0.05 % of the rows, and nothing of the norm."""
    found = judged("drops_the_last_tile", inputs="zipf-medium", tokens=1024, vocab_size=16392, hidden_size=32)
    assert found.grad_weight_excess < 4
    assert found.failures[0] == "grad_weight: 8 rows are all zero where the true gradient is not (eager's: 0)"
    assert found.diagnostics.grad_weight_missing_rows == 8 and found.diagnostics.grad_input_missing_rows == 0


def test_rows_that_underflow_in_torch_are_not_missing():
    """Logits of standard deviation 128: torch's own rows vanish where the true ones are four times the smallest."""
    sharp = {"kind": "gaussian", "std": 128.0}
    found = judged("right", inputs=sharp, label_smoothing=0.0, vocab_size=2000, tokens=256, hidden_size=64)
    assert found.failures == []


def test_the_limit_of_the_shift_does_not_depend_on_the_order_of_the_tokens():
    """The tokens that the column moves most come last, beyond the first chunk."""
    case = Case.model_validate(CASE | {"tokens": 640})
    drawn = draw(case, CPU)
    drawn.input[:512] /= 64
    turned = replace(drawn, input=drawn.input.flip(0), target=drawn.target.flip(0))
    limits = [yardstick(case, tensors, oracle(case, tensors, 1 << 30), 1 << 30).shift for tensors in (drawn, turned)]
    assert set(limits[0]) == {"loss", "grad_input", "grad_weight"}
    assert limits[0] == pytest.approx(limits[1], rel=0.01)


def test_gradients_that_figures_leave_are_not_live_when_memory_is_measured(monkeypatch):
    """What is live then is not counted as needed, and what is not needed is not poisoned."""
    worker, seen, poisoned = Sessions(), [], []

    def figures(call):
        call.backward(call.forward())
        return {"share": 0.5}

    def live_bytes(device):
        seen.extend(tensor.grad for tensor in worker._session.call.differentiated)
        return 0

    def memory(device, needed_bytes):
        poisoned.append(needed_bytes)
        return poisoned_memory(device, needed_bytes)

    monkeypatch.setattr(Call, "figures", figures)
    monkeypatch.setattr(judging, "live_bytes", live_bytes)
    monkeypatch.setattr(judging, "poisoned_memory", memory)
    found = judged("right", worker=worker)
    assert found.failures == [] and seen == [None, None]
    assert poisoned[0] == 0  # a CPU's first call, of which nothing is known yet
    assert len(poisoned) == 3 and min(poisoned[1:]) >= gradient_floor_bytes(Case.model_validate(CASE))


@pytest.mark.parametrize("kind", ["zipf-medium", "zipf-strong", "gaussian"])
@pytest.mark.parametrize("pieces", [8, 16, 32])
def test_mass_fails_no_accumulation_in_bf16_whose_error_passes(kind, pieces, monkeypatch):
    """Stagnation leaves a rest that many times eager's does not cover; the excess is what judges it."""
    monkeypatch.setattr(planted, "_ACCUMULATIONS", pieces)
    sizes = {"tokens": 1024, "vocab_size": 2000, "hidden_size": 64, "label_smoothing": 0.0}
    found = judged("accumulates_in_half_precision", inputs=kind, **sizes)
    assert 1 < found.grad_weight_excess < 4
    assert found.failures == [] and found.checks.mass.deviation < found.checks.mass.limit


def test_mass_is_held_to_what_the_row_is_permitted():
    measured_by = MassYardstick(eager=1e-4, independent=1e-4, accumulated=2e-3, accumulated_excess=2.0)
    assert measured_by.limit(4.0) == pytest.approx(7.8e-3)
    assert measured_by.limit(8.0) == pytest.approx(15.4e-3)
    assert measured_by.limit(1.1) == pytest.approx(2.29e-3)
    assert measured_by.model_copy(update={"accumulated": 0.0}).limit(4.0) == pytest.approx(4e-4)


def test_sketches_are_gone_when_the_oracle_needs_the_memory(monkeypatch):
    """The referee chose which rows to cover from what is free beside the gradients."""
    held = []

    def watched(*arguments, **settings):
        gc.collect()  # of what other tests have left
        held.append([thing for thing in gc.get_objects() if type(thing) is Sketch])
        return oracle(*arguments, **settings)

    monkeypatch.setattr(judging, "oracle", watched)
    assert judged("right").failures == []
    assert held == [[]]


def test_a_truth_that_does_not_fit_is_no_crash(monkeypatch):
    """Out of memory is tried again alone, without the workers that held it."""
    case = Case.model_validate(CASE)
    common = {"case": case.model_dump(mode="json"), "device": "cpu", "memory_fraction": 0.9}
    referee, worker = Sessions(), Sessions()
    referee.handle({"do": "open_referee", **common})
    eager = referee.handle({"do": "eager_errors"})
    worker.handle({"do": "open", "path": "harness.selftest.planted:right", "options": {}, **common})
    monkeypatch.setattr(judging, "free_bytes", lambda device: 1000)
    with pytest.raises(DoesNotFit) as caught:
        worker.handle({"do": "agree", "eager": eager, "max_excess": 4.0})
    status, reason = classify(caught.value)
    assert status is Status.OUT_OF_MEMORY
    assert reason.startswith("could not be judged: memory_budget_bytes is 600; the oracle of N 512")
    assert classify(ValueError("of its own"))[0] is Status.CRASHED


def test_the_referee_leaves_room_for_what_a_worker_holds(monkeypatch):
    case, budgets = Case.model_validate(CASE), []

    def watched(case, tensors, budget):
        budgets.append(budget)
        return oracle(case, tensors, budget)

    monkeypatch.setattr(referees, "free_bytes", lambda device: 1 << 30)
    monkeypatch.setattr(referees, "oracle", watched)
    referee = Sessions()
    referee.handle(
        {"do": "open_referee", "case": case.model_dump(mode="json"), "device": "cpu", "memory_fraction": 0.9}
    )
    referee.handle({"do": "eager_errors"})
    sketches = 7 * (512 + 1000) * 16 * 8
    assert budgets == [int(0.6 * ((1 << 30) - gradient_floor_bytes(case) - sketches))]


def test_a_filter_that_drops_mass_hides_in_the_whole_norm():
    """Half of the rows without a gradient: hardly an error of the whole, and a rest that no rounding leaves."""
    found = judged("filters_small_rows", inputs="zipf-medium", vocab_size=4000, tokens=256)
    assert found.grad_weight_excess < 4 and found.checks.mass.deviation > 1.5 * found.checks.mass.limit
    assert found.diagnostics.cold_row_error_median == 1.0
    assert found.eager_diagnostics.cold_row_error_median < 0.05
    assert found.diagnostics.adamw_step_error > 0.5 > 10 * found.eager_diagnostics.adamw_step_error / 2


def test_yardstick_travels_as_json():
    case = Case.model_validate(CASE)
    referee = Sessions()
    referee.handle(
        {"do": "open_referee", "case": case.model_dump(mode="json"), "device": "cpu", "memory_fraction": 0.9}
    )
    answer = referee.handle({"do": "eager_errors"})
    assert Yardstick.model_validate(json.loads(json.dumps(answer))).model_dump() == answer


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_disturbed_inputs_come_back_to_the_bit(dtype):
    case = Case.model_validate(CASE | {"dtype": dtype, "linear_bias": True, "ignored_fraction": 0.2})
    tensors = draw(case, CPU)
    before, original = digests(tensors), draw(case, CPU)
    order = an_order(case.vocab_size, CPU)
    with permuted_vocabulary(tensors, order):
        assert torch.equal(tensors.linear_weight[7], original.linear_weight[order[7]])
        assert torch.equal(tensors.linear_bias[7], original.linear_bias[order[7]])
        counted = original.target >= 0
        assert torch.equal(order[tensors.target[counted]], original.target[counted])
        assert torch.equal(tensors.target[~counted], original.target[~counted])
        assert {name for name in before if digests(tensors)[name] != before[name]} == {
            "linear_weight", "linear_bias", "target",
        }  # fmt: skip
    assert digests(tensors) == before
    shift = shift_for(tensors.input)
    with constant_column(tensors.linear_weight, shift.column, shift.value):
        moved = tensors.input[:, shift.column].float() * shift.value
        assert 96 <= float(moved.max()) < 192 and float(moved.max()) == float(moved.abs().max())
        assert bool((tensors.linear_weight[:, shift.column] == shift.value).all())
    assert digests(tensors) == before
    assert shift_for(torch.zeros(3, 4)) is None


@pytest.mark.parametrize("largest", [4.2, -4.2, 3.99, 4.0, -4.01, 1.0, 0.37, 40.0, -96.0, 200.0])
def test_the_shift_overflows_exp_whatever_the_largest_element_is(largest):
    """Rounded the other way, an element of 4.2 was moved by 67: a forgotten maximum passed on a GPU."""
    input = torch.tensor([[0.1, 0.3], [-0.2, largest], [0.1, -0.2 * largest]])
    shift = shift_for(input)
    assert shift.column == 1
    moved = input[:, 1] * shift.value
    assert moved[1] >= 96 and moved[1] < 192 and bool(moved[1].exp().isinf())
    assert math.frexp(abs(shift.value))[0] == 0.5


def test_sketches_estimate_what_they_stand_for():
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(300, 64, generator=generator)
    other = gradient + 0.01 * torch.randn(300, 64, generator=generator)
    exact = float((other - gradient).norm() / gradient.norm())
    assert deviation(project(other), project(gradient)) == pytest.approx(exact, rel=0.1)
    one_row = gradient.clone()
    one_row[5] *= 1.5  # a difference of rank one is the worst case
    exact = float((one_row - gradient).norm() / gradient.norm())
    assert deviation(project(one_row), project(gradient)) == pytest.approx(exact, rel=0.6)
    spoilt = gradient.clone()
    spoilt[3, 3] = torch.nan
    seen = sketch(torch.ones(()), [spoilt, None])
    assert not seen.finite() and deviation(seen.gradients["grad_input"], project(gradient)) == float("inf")
    assert sketch(torch.ones(()), [gradient], without_column=2).finite()
    without = gradient.clone()
    without[:, 2] = 99.0
    assert torch.equal(project(without, without_column=2), project(gradient, without_column=2))


def test_memory_is_poisoned_inside_alone():
    with poisoned_memory(CPU, 0) as poisoned:
        assert poisoned is None
        assert bool(torch.empty(1000).isnan().all()) and bool(torch.empty(10, dtype=torch.bfloat16).isnan().all())
    assert not torch.are_deterministic_algorithms_enabled()


def test_poison_imports_no_compiler():
    """It would be a second of every worker's start."""
    program = (
        "import sys, torch; from harness.worker.poison import poisoned_memory\n"
        "with poisoned_memory(torch.device('cpu'), 0): print(torch.empty(9).isnan().all().item())\n"
        "print([m for m in ('torch._inductor', 'torch._dynamo') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["True", "[]"]
