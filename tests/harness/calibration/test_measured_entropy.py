"""Measured entropies against the chain of bounds, with and without a direction that all rows share."""

import dataclasses
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.calibration.head import Head
from harness.calibration.measured_entropy import measured_entropy
from harness.case import Case
from harness.worker.inputs import draw
from tests.harness.calibration import naive


@given(
    seed=st.integers(0, 2**16),
    scale=st.floats(0.01, 3),
    bias=st.booleans(),
    softcap=st.sampled_from([None, 0.5, 5.0]),
    temperature=st.sampled_from([0.3, 1.0, 4.0]),
)
@settings(max_examples=40, deadline=None)
def test_the_chain_holds(seed, scale, bias, softcap, temperature):
    head = naive.random_head(seed, bias=bias, softcap=softcap, temperature=temperature)
    hidden, _ = naive.random_tokens(seed, head, 30)
    hidden = scale * hidden
    found = measured_entropy(hidden, head, chunk_bytes=1000, dtype=torch.float64)
    torch.testing.assert_close(found.entropy_nats, naive.entropy(naive.probabilities(hidden, head)))
    chain = [
        found.entropy_nats,
        found.centred_logit_bound_nats,
        found.logit_bound_nats,
        found.head_bound_nats,
        torch.full_like(found.entropy_nats, found.theorem_bound_nats),
    ]
    for higher, lower in pairwise(chain):
        assert bool((higher >= lower - 1e-9).all())
    assert bool((found.centred_logit_bound_nats >= found.centred_head_bound_nats - 1e-9).all())
    assert float(found.entropy_nats.max()) <= found.maximum_nats + 1e-12


def test_scale_by_definition():
    head = naive.random_head(2, bias=True)
    hidden, _ = naive.random_tokens(2, head)
    scale = measured_entropy(hidden, head, dtype=torch.float64).scale
    weight, bias = head.linear_weight, head.linear_bias
    assert bias is not None
    assert scale.sigma_c == pytest.approx(float(torch.linalg.matrix_norm(weight, 2)))
    assert scale.centred_sigma_c == pytest.approx(float(torch.linalg.matrix_norm(weight - weight.mean(0), 2)))
    assert scale.bias_norm == pytest.approx(float(bias.norm()))
    assert scale.centred_bias_norm == pytest.approx(float((bias - bias.mean()).norm()))
    assert scale.sigma_h == float(hidden.abs().max())
    assert scale.hidden_norm_rms == pytest.approx(float(hidden.square().sum(1).mean().sqrt()))


def test_a_shared_direction_loosens_only_what_is_not_centred():
    head = naive.random_head(3, vocab_size=200)
    hidden, _ = naive.random_tokens(3, head, 50)
    hidden = 0.05 * hidden
    shared = dataclasses.replace(head, linear_weight=head.linear_weight + 5 * torch.ones(8, dtype=torch.float64))
    without, with_it = (measured_entropy(hidden, h, dtype=torch.float64) for h in (head, shared))
    for name in ("entropy_nats", "centred_logit_norm", "centred_logit_bound_nats", "centred_head_bound_nats"):
        torch.testing.assert_close(getattr(with_it, name), getattr(without, name))
    assert with_it.scale.centred_sigma_c == pytest.approx(without.scale.centred_sigma_c)
    assert with_it.scale.sigma_c > 10 * without.scale.sigma_c
    assert bool((with_it.head_bound_nats < without.head_bound_nats).all())
    assert float(with_it.logit_bound_nats.mean()) < float(without.logit_bound_nats.mean())


def test_trained_like_logits_in_half_precision():
    case = Case.model_validate(
        {"tokens": 64, "hidden_size": 64, "vocab_size": 3000, "inputs": "zipf-strong", "dtype": "bfloat16"}
    )
    drawn = draw(case, torch.device("cpu"))
    head = Head(drawn.linear_weight)
    found = measured_entropy(drawn.input, head)
    assert bool((found.entropy_nats >= found.centred_logit_bound_nats - 1e-5).all())
    assert found.scale.centred_sigma_c < found.scale.sigma_c / 3
    # norms of trained-like logits are far above log V: the bound is true and says nothing
    assert float(found.centred_logit_norm.min()) > 3 * math.log(3000)
    assert float(found.centred_logit_bound_nats.max()) < 1e-6 < float(found.entropy_nats.min())


def test_the_bound_is_attained_by_a_head():
    head = naive.identity_head(7)
    hidden = torch.full((1, 7), -1 / math.sqrt(42), dtype=torch.float64)
    hidden[0, 0] = math.sqrt(6 / 7)
    found = measured_entropy(2 * hidden, head, dtype=torch.float64)
    assert float(found.entropy_nats[0]) == pytest.approx(float(found.centred_logit_bound_nats[0]))
    assert float(found.entropy_nats[0]) == pytest.approx(float(found.head_bound_nats[0]))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="hidden must be"):
        measured_entropy(torch.zeros(0, 4), Head(torch.eye(4)))
