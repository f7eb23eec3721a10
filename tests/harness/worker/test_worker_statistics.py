"""What each kind of inputs promises, at a size where a CPU shows it."""

import math

import pytest
import torch

from harness.case import Case
from harness.worker.inputs import draw
from harness.worker.statistics import input_statistics

CPU = torch.device("cpu")
N, D, V = 256, 256, 8192


def statistics(kind, **changes):
    case = Case.model_validate({"tokens": N, "hidden_size": D, "vocab_size": V, "inputs": kind, **changes})
    return input_statistics(case, draw(case, CPU))


def test_against_the_definition():
    case = Case(tokens=40, hidden_size=8, vocab_size=30, softcap=3.0, linear_bias=True, ignored_fraction=0.25)
    tensors = draw(case, CPU)
    found = input_statistics(case, tensors)
    weight = tensors.linear_weight.double()
    z = 3.0 * torch.tanh((tensors.input.double() @ weight.T + tensors.linear_bias.double()) / 3.0)
    p = z.softmax(1)
    counts = tensors.target >= 0
    expected = {
        "entropy_nats": float(torch.distributions.Categorical(logits=z).entropy().mean()),
        "probability_above_2**-12_share": float((p > 2**-12).double().mean()),
        "tail_mass_mean": float((p * (p <= 2**-12)).sum(1).mean()),
        "lse_mean_nats": float(z.logsumexp(1).mean()),
        "logit_std": float(z.std(correction=0)),
        "shared_direction_ratio": float(weight.mean(0).norm() / weight.norm(dim=1).mean()),
        "top_probability_mean": float(p.amax(1).mean()),
        "target_probability_mean": float(p[counts].gather(1, tensors.target[counts][:, None]).mean()),
        "counted_rows": 30,
        "distinct_targets": len(set(tensors.target[counts].tolist())),
    }
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("kind", "direction"), [("zipf-weak", 0.32), ("zipf-medium", 0.65), ("zipf-strong", 0.93)])
def test_zipf_looks_trained(kind, direction):
    found = statistics(kind)
    assert 2.2 < found["entropy_nats"] < 3.5
    assert found["shared_direction_ratio"] == pytest.approx(direction, abs=0.03)
    # targets come from the model: their mean probability is the mean of sum_v p_v**2, far above a random row's 1 / V
    assert 0.2 < found["target_probability_mean"] < 0.5


def test_gaussian_has_its_standard_deviation():
    assert statistics("gaussian")["logit_std"] == pytest.approx(1.0, rel=0.03)
    assert statistics({"kind": "gaussian", "std": 3.0})["logit_std"] == pytest.approx(3.0, rel=0.03)


def test_uniform_is_nearly_flat():
    found = statistics("uniform")
    assert found["entropy_nats"] == pytest.approx(math.log(V), abs=1e-3)
    assert found["top_probability_mean"] < 1.06 / V


@pytest.mark.parametrize("softcap", [None, 30.0])
def test_confident_is_confident(softcap):
    assert statistics("confident", softcap=softcap)["target_probability_mean"] > 0.97


@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize(("beta", "probability"), [(0.0, 0.9), (0.1, 0.9), (0.5, 0.5), (1.0, 0.0)])
def test_smoothed_is_at_the_optimum(beta, probability, softcap):
    found = statistics("smoothed", label_smoothing=beta, softcap=softcap)
    assert found["target_probability_mean"] == pytest.approx(probability, abs=0.06)


def test_nothing_counts():
    found = statistics("gaussian", ignored_fraction=1.0)
    assert found["target_probability_mean"] is None
    assert found["counted_rows"] == 0
