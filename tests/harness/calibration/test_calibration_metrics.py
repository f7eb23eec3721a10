"""Every metric against its definition, torchmetrics, and what must not matter."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_calibration_error

from harness.calibration.binning import equal_mass_bins, equal_width_bins
from harness.calibration.bins import (
    expected_calibration_error,
    maximum_calibration_error,
    mean_overconfidence,
    root_mean_square_calibration_error,
    sampling_floor,
)
from harness.calibration.head import Head
from harness.calibration.metrics import calibration_metrics
from harness.calibration.tokens import own_targets, token_statistics
from harness.case import Case
from harness.worker.inputs import draw
from tests.harness.calibration import naive

FP64 = {"dtype": torch.float64}
SETTINGS = [
    {},
    {"bias": True},
    {"softcap": 2.0},
    {"softcap": 1.5, "temperature": 0.3, "bias": True},
    {"temperature": 4.0},
]


@pytest.mark.parametrize("options", SETTINGS)
@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_all_metrics_against_their_definitions(options, ignored):
    head = naive.random_head(1, **options)
    hidden, target = naive.random_tokens(1, head, ignored=ignored)
    metrics, _ = calibration_metrics(hidden, target, head, bin_count=7, chunk_bytes=5000, **FP64)

    p = naive.probabilities(hidden, head)[target != -100]
    y = target[target != -100]
    confidence, top = p.max(1)
    width, mass = naive.width_gaps(confidence, top == y, 7), naive.mass_gaps(confidence, top == y, 7)
    static = [naive.l1(naive.width_gaps(p[:, k], y == k, 7)) for k in range(head.vocab_size)]
    adaptive = [naive.l1(naive.mass_gaps(p[:, k], y == k, 7)) for k in range(head.vocab_size)]
    expected = {
        "tokens": y.numel(),
        "bin_count": 7,
        "accuracy": float((top == y).double().mean()),
        "loss_nats": float(-p.gather(1, y[:, None]).log().mean()),
        "entropy_nats": float(naive.entropy(p).mean()),
        "mean_confidence": float(confidence.mean()),
        "ece": naive.l1(width),
        "rms": naive.l2(width),
        "mce": max(abs(gap) for _, gap in width),
        "ece_mass": naive.l1(mass),
        "rms_mass": naive.l2(mass),
        "sce": sum(static) / head.vocab_size,
        "sce_total": sum(static),
        "ace": sum(adaptive) / head.vocab_size,
        "ace_total": sum(adaptive),
    }
    found = dataclasses.asdict(metrics)
    for floor in ("ece_floor", "sce_total_floor", "ace_total_floor"):
        found.pop(floor)
    assert found == pytest.approx(expected, rel=1e-10, abs=1e-13)


def _torchmetrics(p, target, norm, bin_count):
    # it rounds the confidences to fp32, whence the tolerances
    return float(multiclass_calibration_error(p, target, p.shape[1], bin_count, norm, ignore_index=-100))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bin_count", [10, 15])
def test_top_label_errors_against_torchmetrics(seed, bin_count):
    head = naive.random_head(seed, softcap=4.0)
    hidden, target = naive.random_tokens(seed, head, 500, ignored=0.2)
    head = dataclasses.replace(head, temperature=0.7)  # over-confident
    metrics, _ = calibration_metrics(hidden, target, head, bin_count=bin_count, classwise=False, **FP64)
    p = naive.probabilities(hidden, head)
    assert metrics.ece == pytest.approx(_torchmetrics(p, target, "l1", bin_count), rel=1e-6)
    assert metrics.rms == pytest.approx(_torchmetrics(p, target, "l2", bin_count), rel=1e-6)
    assert metrics.mce == pytest.approx(_torchmetrics(p, target, "max", bin_count), rel=1e-6)


@pytest.mark.parametrize("kind", ["zipf-medium", "confident", "smoothed"])
def test_trained_like_half_precision_against_torchmetrics(kind):
    case = Case.model_validate(
        {"tokens": 300, "hidden_size": 64, "vocab_size": 2000, "inputs": kind, "dtype": "bfloat16"}
    )
    drawn = draw(case, torch.device("cpu"))
    head = Head(drawn.linear_weight)
    metrics, _ = calibration_metrics(drawn.input, drawn.target, head, chunk_bytes=200_000)
    p = naive.probabilities(drawn.input, head)
    for found, norm in ((metrics.ece, "l1"), (metrics.rms, "l2"), (metrics.mce, "max")):
        assert found == pytest.approx(_torchmetrics(p, drawn.target, norm, 15), rel=1e-4)
    y = drawn.target
    static = [naive.l1(naive.width_gaps(p[:, k], y == k, 15)) for k in y.unique().tolist()]
    unseen = torch.ones(2000, dtype=torch.bool).index_fill_(0, y.unique(), False)
    assert metrics.sce_total == pytest.approx(sum(static) + float(p[:, unseen].mean(0).sum()), rel=1e-4)
    assert metrics.loss_nats == pytest.approx(float(-p.gather(1, y[:, None]).log().mean()), rel=1e-5)


def test_a_confidence_of_one_belongs_to_the_last_bin():
    # torchmetrics gives it a bin of its own, here two gaps of 0.3 and 0.2; together they cancel in part
    confidence = torch.tensor([1.0] * 10 + [0.95] * 10, dtype=torch.float64)
    correct = torch.tensor([True] * 7 + [False] * 3 + [True] * 10)
    bins = equal_width_bins(confidence, correct, 10)
    assert bins.counts == (0,) * 9 + (20,)
    assert expected_calibration_error(bins) == pytest.approx(0.975 - 0.85)


@given(seed=st.integers(0, 2**16), bytes_per_chunk=st.integers(1, 40_000))
@settings(max_examples=25, deadline=None)
def test_neither_chunks_nor_order_matter(seed, bytes_per_chunk):
    head = naive.random_head(seed, vocab_size=11, softcap=3.0)
    hidden, target = naive.random_tokens(seed, head, 60, ignored=0.1)
    whole, bins = calibration_metrics(hidden, target, head, bin_count=5, **FP64)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    other, other_bins = calibration_metrics(
        hidden[order], target[order], head, bin_count=5, chunk_bytes=bytes_per_chunk, **FP64
    )
    redrawn = {"sce_total_floor": 0.0, "ace_total_floor": 0.0}
    whole, other = dataclasses.replace(whole, **redrawn), dataclasses.replace(other, **redrawn)
    assert dataclasses.asdict(other) == pytest.approx(dataclasses.asdict(whole), rel=1e-10, abs=1e-13)
    assert other_bins.counts == bins.counts


@given(
    values=st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.9, 1.0]), st.booleans()), min_size=1, max_size=40),
    bin_count=st.integers(1, 9),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_equal_mass_with_ties(values, bin_count, seed):
    confidence = torch.tensor([c for c, _ in values], dtype=torch.float64)
    correct = torch.tensor([right for _, right in values])
    bins = equal_mass_bins(confidence, correct, bin_count)
    assert expected_calibration_error(bins) == pytest.approx(naive.l1(naive.mass_gaps(confidence, correct, bin_count)))
    assert sum(bins.correct_sums) == pytest.approx(int(correct.sum()))
    assert max(bins.counts) - min(bins.counts) <= 1
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    shuffled = equal_mass_bins(confidence[order], correct[order], bin_count)
    assert shuffled.correct_sums == pytest.approx(bins.correct_sums)


@given(seed=st.integers(0, 2**16), bin_count=st.integers(1, 20))
@settings(max_examples=30, deadline=None)
def test_errors_are_ordered(seed, bin_count):
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(80, generator=generator, dtype=torch.float64)
    correct = torch.rand(80, generator=generator) < 0.5
    for bins in (equal_width_bins(confidence, correct, bin_count), equal_mass_bins(confidence, correct, bin_count)):
        ece, rms = expected_calibration_error(bins), root_mean_square_calibration_error(bins)
        assert abs(mean_overconfidence(bins)) <= ece + 1e-12
        assert ece <= rms + 1e-12
        assert rms <= maximum_calibration_error(bins) + 1e-12


def _planted(confidence: float, accuracy: float, tokens: int = 1000, vocab_size: int = 10):
    """Logits (N, V) whose top class has `confidence`, the others share the rest; right in exactly `accuracy`."""
    others = (1 - confidence) / (vocab_size - 1)
    logits = torch.full((tokens, vocab_size), math.log(others), dtype=torch.float64)
    top = torch.arange(tokens) % vocab_size
    logits[torch.arange(tokens), top] = math.log(confidence)
    wrong = torch.arange(tokens) >= round(accuracy * tokens)
    return logits, torch.where(wrong, (top + 1) % vocab_size, top)


@pytest.mark.parametrize(("confidence", "accuracy"), [(0.9, 0.6), (0.62, 0.6), (0.4, 0.7)])
def test_planted_gap_is_seen_with_its_size(confidence, accuracy):
    hidden, target = _planted(confidence, accuracy)
    metrics, bins = calibration_metrics(hidden, target, naive.identity_head(10), **FP64)
    gap = abs(confidence - accuracy)
    for name in ("ece", "rms", "mce", "ece_mass", "rms_mass"):
        assert getattr(metrics, name) == pytest.approx(gap, rel=1e-6), name
    assert mean_overconfidence(bins) == pytest.approx(confidence - accuracy)
    # tops and wrong targets cycle over the classes: each is too likely by a tenth of the gap where it is the top, and
    # too unlikely by as much where it is not
    assert metrics.sce_total == pytest.approx(2 * gap, rel=1e-6)


def test_planted_gap_in_one_half_of_the_tokens():
    sure, sure_target = _planted(0.95, 0.75, 500)
    unsure, unsure_target = _planted(0.5, 0.5, 500)
    hidden, target = torch.cat([sure, unsure]), torch.cat([sure_target, unsure_target])
    metrics, _ = calibration_metrics(hidden, target, naive.identity_head(10), bin_count=10, classwise=False, **FP64)
    assert metrics.ece == pytest.approx(0.1, rel=1e-6)
    assert metrics.rms == pytest.approx(0.2 / math.sqrt(2), rel=1e-6)
    assert metrics.mce == pytest.approx(0.2, rel=1e-6)
    assert metrics.ece_mass == pytest.approx(0.1, rel=1e-6)


def test_calibrated_predictions_give_the_sampling_floor():
    head = naive.random_head(5, vocab_size=40)
    hidden, _ = naive.random_tokens(5, head, 2000)
    p = naive.probabilities(hidden, head)
    errors, floors = [], []
    for seed in range(40):
        target = torch.multinomial(p, 1, generator=torch.Generator().manual_seed(seed))[:, 0]
        statistics = token_statistics(hidden, target, head, **FP64)
        bins = equal_width_bins(statistics.confidence, statistics.correct)
        errors.append(expected_calibration_error(bins))
        floors.append(sampling_floor(bins))
    assert sum(errors) / 40 == pytest.approx(sum(floors) / 40, rel=0.12)
    assert max(errors) < 3 * floors[0]


def test_own_targets_follow_the_predictions():
    head = naive.random_head(6, vocab_size=5, softcap=2.0, temperature=0.8)
    hidden = naive.random_tokens(6, head, 1)[0].repeat(20_000, 1)
    drawn = own_targets(hidden, head, seed=3, chunk_bytes=10_000)
    p = naive.probabilities(hidden[:1], head)[0]
    frequency = torch.bincount(drawn, minlength=5) / 20_000
    assert bool(((frequency - p).abs() < 4 * (p * (1 - p) / 20_000).sqrt()).all())
    assert torch.equal(drawn, own_targets(hidden, head, seed=3, chunk_bytes=10_000))
    assert not torch.equal(drawn, own_targets(hidden, head, seed=4, chunk_bytes=10_000))


def test_classwise_floor_is_what_a_calibrated_model_shows():
    # a vocabulary of rare classes: the errors of a perfect model are large, and the floor says so
    head = naive.random_head(9, vocab_size=3000)
    hidden, target = naive.random_tokens(9, head, 400)
    metrics, _ = calibration_metrics(hidden, target, head)
    assert metrics.sce_total is not None
    assert metrics.ace_total is not None
    assert metrics.sce_total > 0.5
    assert metrics.sce_total == pytest.approx(metrics.sce_total_floor, rel=0.1)
    assert metrics.ace_total == pytest.approx(metrics.ace_total_floor, rel=0.1)


def test_floor_falls_as_the_root_of_the_tokens():
    confidence = torch.rand(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    few, many = (
        sampling_floor(equal_width_bins(c, torch.zeros_like(c, dtype=torch.bool)))
        for c in (confidence, confidence.repeat(16))
    )
    assert few == pytest.approx(4 * many)


def test_confident_tokens_keep_their_digits_in_fp32():
    # 1 - p of 1e-10 is lost in fp32, and so would be a loss or an entropy taken from p or from an fp32 lse of 40
    hidden = torch.tensor([[40.0, 40.0 - 23.0, 0.0]])
    statistics = token_statistics(hidden, torch.tensor([1]), Head(torch.eye(3)))
    assert float(statistics.loss_nats[0]) == pytest.approx(23.0, rel=1e-7)
    assert float(statistics.confidence[0]) <= 1.0
    assert float(statistics.entropy_nats[0]) >= 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(3, 5)}, "hidden must be"),
        ({"target": torch.tensor([0, 1])}, "target must be"),
        ({"target": torch.tensor([0, 1, 2], dtype=torch.int32)}, "int64"),
        ({"target": torch.tensor([0, 1, 4])}, r"0\.\.3"),
        ({"target": torch.tensor([0, 1, -1])}, "from -1 to 1"),
        ({"target": torch.full((3,), -100)}, "at least one token must count"),
        ({"bin_count": 0}, "bin_count"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"hidden": torch.zeros(3, 4), "target": torch.tensor([0, 1, 2]), "head": Head(torch.eye(4)), **change}
    with pytest.raises(ValueError, match=message):
        calibration_metrics(**arguments)


@pytest.mark.parametrize("change", [{"softcap": 0.0}, {"temperature": -1.0}, {"linear_bias": torch.zeros(3)}])
def test_bad_head_is_named(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        Head(torch.eye(4), **change)
