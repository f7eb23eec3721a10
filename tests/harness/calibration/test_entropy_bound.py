"""The lower bound of the entropy: against high precision, brute force and what was published."""

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.calibration.entropy_bound import (
    entropy_lower_bound,
    head_logit_norm,
    log_entropy_lower_bound,
    logit_norm_of_std,
    normalised_gap,
    softcap_entropy_bound,
)
from tests.harness.calibration import naive


def _minimiser(vocab_size: int, norm: float, up: int = 1) -> torch.Tensor:
    """(V,) centred, of that norm, `up` equal coordinates above the others."""
    u = torch.full((vocab_size,), -math.sqrt(up / (vocab_size * (vocab_size - up))), dtype=torch.float64)
    u[:up] = math.sqrt((vocab_size - up) / (vocab_size * up))
    return norm * u


def _entropy(u: torch.Tensor) -> torch.Tensor:
    return naive.entropy(torch.softmax(u, -1))


@pytest.mark.parametrize("vocab_size", [2, 3, 5, 9, 1000])
@pytest.mark.parametrize("norm", [0.0, 0.1, 1.0, 4.0, 12.0])
def test_attained(vocab_size, norm):
    u = _minimiser(vocab_size, norm)
    assert float(u.norm()) == pytest.approx(norm)
    assert entropy_lower_bound(vocab_size, norm) == pytest.approx(float(_entropy(u)), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("vocab_size", [2, 3, 4, 6, 10])
@pytest.mark.parametrize("norm", [0.3, 1.0, 2.5, 5.0])
def test_brute_force_finds_nothing_lower_and_comes_as_low(vocab_size, norm):
    # projected gradient descent on the ball from many starts, the means left free: the search does not know the answer
    generator = torch.Generator().manual_seed(vocab_size)
    u = torch.randn(64, vocab_size, generator=generator, dtype=torch.float64)
    u = norm * u / u.norm(dim=1, keepdim=True)
    for _ in range(1500):
        p = u.softmax(1)
        gradient = -p * (u - (p * u).sum(1, keepdim=True))
        step = 0.3 * norm / (gradient.norm(dim=1, keepdim=True) + 1e-12)
        u = u - torch.minimum(step, torch.tensor(20.0, dtype=torch.float64)) * gradient
        u = u * (norm / u.norm(dim=1, keepdim=True)).clamp(max=1)
    lowest, bound = float(_entropy(u).min()), entropy_lower_bound(vocab_size, norm)
    assert lowest >= bound - 1e-12
    assert lowest == pytest.approx(bound, abs=1e-5)


@given(
    vocab_size=st.integers(2, 300),
    norm=st.floats(0, 60),
    shape=st.floats(0.2, 8),
    offset=st.floats(-5, 5),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=200, deadline=None)
def test_no_logits_are_below_it(vocab_size, norm, shape, offset, seed):
    u = torch.randn(vocab_size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    u = u.sign() * u.abs() ** shape  # from nearly two values to one that towers
    u = norm * u / max(float((u - u.mean()).norm()), 1e-300) + offset
    entropy = float(_entropy(u))
    centred, whole = float((u - u.mean()).norm()), float(u.norm())
    assert entropy >= entropy_lower_bound(vocab_size, centred) - 1e-9
    assert entropy_lower_bound(vocab_size, centred) >= entropy_lower_bound(vocab_size, whole) - 1e-12


@given(vocab_size=st.integers(2, 10**6), norm=st.floats(1e-3, 1e3), up=st.integers(1, 1000))
@settings(max_examples=100, deadline=None)
def test_one_coordinate_up_beats_several(vocab_size, norm, up):
    up = min(up, vocab_size - 1)
    d = norm * math.sqrt(vocab_size / (up * (vocab_size - up)))
    x = math.log(vocab_size - up) - math.log(up) - d
    down = 1 / (1 + math.exp(-x)) if x > -700 else 0.0
    several = math.log(up) + (x + math.log1p(math.exp(-x)) if x > 0 else math.log1p(math.exp(x))) + d * down
    assert several >= entropy_lower_bound(vocab_size, norm) - 1e-11


def _precise(vocab_size: int, norm: float) -> mpmath.mpf:
    with mpmath.workdps(60):
        d = mpmath.mpf(norm) * mpmath.sqrt(mpmath.mpf(vocab_size) / (vocab_size - 1))
        odds = (vocab_size - 1) * mpmath.exp(-d)
        return mpmath.log1p(odds) + d * odds / (1 + odds)


@pytest.mark.parametrize("vocab_size", [2, 50, 32_000, 1_000_000])
@pytest.mark.parametrize("hidden_size", [1, 64, 4096, 100_000])
@pytest.mark.parametrize("rho", [1e-4, 0.05, 0.2, 1.0, 30.0])
def test_against_high_precision(vocab_size, hidden_size, rho):
    norm = head_logit_norm(hidden_size, rho, 1.0)
    precise = _precise(vocab_size, norm)
    found = entropy_lower_bound(vocab_size, norm)
    assert found == pytest.approx(float(precise), rel=1e-11, abs=1e-300)
    assert math.isfinite(found)
    logarithm = log_entropy_lower_bound(vocab_size, norm)
    assert logarithm == pytest.approx(float(mpmath.log(precise)), rel=1e-11, abs=1e-11)


def test_is_the_published_theorem():
    rho, hidden_size, vocab_size = 0.2, 2048, 128_256
    gamma = math.exp(-rho * math.sqrt(hidden_size * vocab_size / (vocab_size - 1)))  # Eq. 14
    second = rho * gamma * math.sqrt(hidden_size * vocab_size * (vocab_size - 1)) / (1 + (vocab_size - 1) * gamma)
    published = math.log(1 + (vocab_size - 1) * gamma) + second
    assert entropy_lower_bound(vocab_size, head_logit_norm(hidden_size, 1.0, rho)) == pytest.approx(published)


@pytest.mark.parametrize(("rho", "hidden_size", "vocab_size"), [(1.0, 16, 10), (0.2, 4096, 32_000), (0.5, 64, 1000)])
def test_equation_37_as_printed_is_no_bound(rho, hidden_size, vocab_size):
    gamma = math.exp(-rho * math.sqrt(hidden_size * vocab_size / (vocab_size - 1)))
    without_d = math.exp(-rho * math.sqrt(vocab_size / (vocab_size - 1)))
    second = rho * math.sqrt(hidden_size * vocab_size * (vocab_size - 1)) * without_d
    printed = math.log(1 + (vocab_size - 1) * gamma) + second / (1 + (vocab_size - 1) * without_d)
    attained = float(_entropy(_minimiser(vocab_size, rho * math.sqrt(hidden_size))))
    assert printed > 1.02 * attained


def test_limits_and_monotony():
    assert entropy_lower_bound(1, 5.0) == 0.0
    assert entropy_lower_bound(1000, 0.0) == pytest.approx(math.log(1000))
    assert entropy_lower_bound(1000, math.inf) == 0.0
    assert entropy_lower_bound(1000, 1e6) == 0.0
    assert log_entropy_lower_bound(1000, 1e6) == pytest.approx(-1e6, rel=1e-3)
    norms = [0.0, 0.5, 1, 2, 5, 10, 20, 50, 700]
    falling = [entropy_lower_bound(256_000, norm) for norm in norms]
    assert falling == sorted(falling, reverse=True)
    rising = [entropy_lower_bound(v, 10.0) for v in (2, 10, 1000, 32_000, 256_000)]
    assert rising == sorted(rising)
    gaps = [normalised_gap(256_000, norm) for norm in norms]
    assert gaps[0] == pytest.approx(0, abs=1e-12)
    assert gaps == sorted(gaps)
    assert gaps[-1] == pytest.approx(1)


def test_norm_of_a_standard_deviation():
    u = torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 7
    assert logit_norm_of_std(500, float(u.std(correction=0))) == pytest.approx(float((u - u.mean()).norm()))


@pytest.mark.parametrize(("vocab_size", "norm"), [(0, 1.0), (5, -1.0), (5, math.nan)])
def test_bad_input_is_named(vocab_size, norm):
    with pytest.raises(ValueError, match="vocab_size" if vocab_size == 0 else "logit_norm"):
        entropy_lower_bound(vocab_size, norm)
    with pytest.raises(ValueError, match="at least"):
        normalised_gap(1, 1.0)


@pytest.mark.parametrize("softcap", [0.3, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("vocab_size", [2, 5, 10])
def test_softcap_bound_is_the_lowest_corner_and_below_all_inside(softcap, vocab_size):
    corners = torch.cartesian_prod(*[torch.tensor([-softcap, softcap], dtype=torch.float64)] * vocab_size)
    bound = softcap_entropy_bound(vocab_size, softcap)
    assert float(_entropy(corners).min()) == pytest.approx(bound, rel=1e-9, abs=1e-15)
    inside = torch.rand(20_000, vocab_size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(_entropy(softcap * (2 * inside - 1)).min()) >= bound - 1e-12


def test_softcap_bound_of_a_large_vocabulary():
    # with cap 5 a million classes leave no room for one to win: many up are lower than one, whose entropy is 13.6
    several, one = softcap_entropy_bound(10**6, 5.0), float(_entropy(_up_by(10**6, 10.0)))
    assert several < one - 2
    assert softcap_entropy_bound(256_000, 30.0) < 1e-15  # the published cap forbids nothing
    assert softcap_entropy_bound(256_000, 30.0, temperature=8.0) == softcap_entropy_bound(256_000, 3.75) > 5
    with pytest.raises(ValueError, match="softcap 0"):
        softcap_entropy_bound(10, 0.0)


def _up_by(vocab_size: int, gap: float) -> torch.Tensor:
    u = torch.zeros(vocab_size, dtype=torch.float64)
    u[0] = gap
    return u
