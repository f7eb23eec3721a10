"""The fitted temperature: planted ones come back, and scaling never makes the fitting tokens' loss worse."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.calibration.metrics import calibration_metrics
from harness.calibration.temperature import fit_temperature
from harness.calibration.tokens import token_statistics
from tests.harness.calibration import naive

FP64 = {"dtype": torch.float64}


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, 1.7, 6.0])
def test_exact_frequencies_give_the_exact_temperature(temperature):
    # two classes; of tokens with logits T * (log odds, 0) exactly the share odds / (1 + odds) has class 0
    logits, target = [], []
    for odds in (2, 3, 9):
        logits += [[temperature * math.log(odds), 0.0]] * (odds + 1)
        target += [0] * odds + [1]
    fit = fit_temperature(
        torch.tensor(logits, dtype=torch.float64), torch.tensor(target), naive.identity_head(2), **FP64
    )
    assert fit.temperature == pytest.approx(temperature, rel=2e-5)
    assert not fit.at_limit
    assert fit.passes <= 15


@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.5])
def test_planted_temperature_comes_back(temperature, softcap):
    head = naive.random_head(7, vocab_size=50, hidden_size=6, softcap=softcap)
    true_head = dataclasses.replace(head, temperature=temperature)  # targets are drawn from this one
    hidden, target = naive.random_tokens(7, true_head, 6000, ignored=0.05)
    fit = fit_temperature(hidden, target, head, chunk_bytes=1 << 20)
    assert abs(math.log(fit.temperature / temperature)) < 4 * fit.log_standard_error
    assert 0.003 < fit.log_standard_error < 0.05
    assert fit.loss_nats <= fit.unscaled_loss_nats
    scaled, _ = calibration_metrics(hidden, target, dataclasses.replace(head, temperature=fit.temperature))
    assert scaled.loss_nats == pytest.approx(fit.loss_nats, rel=1e-5)
    assert scaled.ece < 4 * scaled.ece_floor
    if temperature != 1.0:
        unscaled, _ = calibration_metrics(hidden, target, head)
        assert unscaled.ece > 3 * scaled.ece
        assert unscaled.accuracy == scaled.accuracy


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_standard_error_is_the_spread_over_draws(temperature):
    head = naive.identity_head(5)
    hidden = temperature * torch.randn(400, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = naive.probabilities(hidden, dataclasses.replace(head, temperature=temperature))
    draws = [torch.multinomial(p, 1, generator=torch.Generator().manual_seed(seed))[:, 0] for seed in range(60)]
    fits = [fit_temperature(hidden, target, head, **FP64) for target in draws]
    spread = torch.tensor([math.log(fit.temperature) for fit in fits]).std()
    assert float(spread) == pytest.approx(fits[0].log_standard_error, rel=0.35)  # a spread of 60 is known to 9 %


@given(seed=st.integers(0, 2**16), scale=st.floats(0.05, 30), tokens=st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_never_worse_and_a_minimum(seed, scale, tokens):
    generator = torch.Generator().manual_seed(seed)
    hidden = scale * torch.randn(tokens, 6, generator=generator, dtype=torch.float64)
    target = torch.randint(6, (tokens,), generator=generator)
    head = naive.identity_head(6)
    fit = fit_temperature(hidden, target, head, **FP64)
    assert fit.loss_nats <= fit.unscaled_loss_nats
    assert 0.05 * (1 - 1e-9) <= fit.temperature <= 20 * (1 + 1e-9)
    for log_step in (-0.01, 0.01):
        nearby = fit.temperature * math.exp(log_step)
        if 0.05 <= nearby <= 20:
            there = token_statistics(hidden, target, dataclasses.replace(head, temperature=nearby), **FP64)
            assert fit.loss_nats <= float(there.loss_nats.mean()) + 1e-9


@pytest.mark.parametrize(("right", "limit"), [(True, 0.05), (False, 20.0)])
@pytest.mark.parametrize("margin", [0.1, 1.0, 20.0, 300.0])
def test_no_minimum_within_reach(right, limit, margin):
    hidden = margin * torch.eye(4, dtype=torch.float64)
    target = torch.arange(4) if right else (torch.arange(4) + 1) % 4
    fit = fit_temperature(hidden, target, naive.identity_head(4), **FP64)
    if right and margin == 300.0:  # exp(-300) is no loss at T = 1 either, nor a slope to follow
        assert fit.loss_nats < 1e-100
        return
    assert fit.at_limit
    assert fit.temperature == pytest.approx(limit)


def test_flat_logits_stay_as_they_are():
    fit = fit_temperature(torch.zeros(5, 3), torch.tensor([0, 1, 2, 0, 1]), naive.identity_head(3))
    assert fit.temperature == 1.0
    assert fit.log_standard_error == math.inf
    assert fit.loss_nats == pytest.approx(math.log(3))


def test_divides_what_the_softcap_has_capped():
    head = naive.identity_head(3, softcap=2.0, temperature=0.5)
    statistics = token_statistics(torch.tensor([[50.0, 0.0, -50.0]]), torch.tensor([0]), head, **FP64)
    assert float(statistics.top_logit[0]) == pytest.approx(2.0 / 0.5)  # 2 * tanh(..) would never pass the softcap


@pytest.mark.parametrize(
    ("head", "limits", "message"),
    [
        (naive.identity_head(3, temperature=2.0), {}, "unscaled"),
        (naive.identity_head(3), {"lowest": 1.0}, "either side of 1"),
        (naive.identity_head(3), {"highest": math.inf}, "either side of 1"),
    ],
)
def test_bad_input_is_named(head, limits, message):
    with pytest.raises(ValueError, match=message):
        fit_temperature(torch.zeros(2, 3), torch.tensor([0, 1]), head, **limits)


def test_logits_that_are_not_finite_are_an_error():
    with pytest.raises(ValueError, match="finite"):
        fit_temperature(torch.full((2, 3), math.nan), torch.tensor([0, 1]), naive.identity_head(3))
