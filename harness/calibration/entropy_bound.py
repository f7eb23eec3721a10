"""The least entropy that logits of a given size can have: the paper's Theorem 4.2, derived anew. No torch.

Claim. For u in R^V, V >= 2, and r >= ||u - mean(u) 1||, with gap d = r sqrt(V / (V - 1)) and x = log(V - 1) - d:

    H(softmax(u)) >= log(1 + e^x) + d e^x / (1 + e^x)

with equality for one coordinate at r sqrt((V-1) / V) and the others at -r / sqrt(V (V-1)). Since ||u - mean(u) 1|| <=
||u|| it holds with r = ||u|| as well; with r = sigma_C sigma_h sqrt(D) it is the paper's Eq. 14, term by term.

Derivation. Adding a constant to u changes ||u|| but not H; so the least norm for a distribution is that of the
centred u, and we minimise over mean(u) = 0, ||u|| <= r, a compact set. Write p = softmax(u), a = E_p u. Then dH/du_i
= -p_i (u_i - a).

1. Along a ray, dH(t u)/dt = -t Var_p(u) < 0 unless u = 0, the maximum. So a minimiser has ||u|| = r, and there is a
   multiplier m with p_i (u_i - a) = m u_i for all i (the constraint mean(u) = 0 needs none: both sides sum to 0).
2. lse is strictly convex along the ray and its slope at t = 0 is mean(u) = 0, so at t = 1 a = d lse(t u)/dt > 0. Some
   u_i < 0: there the left side is negative, hence m > 0. No u_i = 0: the left side would be -a p_i < 0.
3. So e^(u_i) (1 - a / u_i) has the same value m Z > 0 for all i. That function increases from 0 on u < 0, is negative
   on (0, a) and increases from 0 on u > a: it takes the value once on either side. u has exactly two values, up > a
   and down < 0.
4. Only one coordinate is up. If u_1 = u_2 = up were both, move along v = e_1 - e_2, tangent to the sphere. The second
   derivative of H + m ||u||^2 / 2 along v is 2 m - 2 p (up - a + 1), and m = p (up - a) / up by step 1. At a minimum
   it is not negative: (up - a) / up >= up - a + 1. With b = up - a in (0, up) this is b (1 - up) >= up, so up < 1 and
   b >= up / (1 - up) > up: a contradiction. Sum 0 and norm r then fix both values, d apart.

The paper's proof has step 3 but not step 4, and its Eq. 37 leaves D out of the exponents of the second term, which
Theorem 4.2 (Eq. 14) has. As printed Eq. 37 is above the entropy that its own minimiser attains.
"""

from __future__ import annotations

import math

import numpy as np


def entropy_lower_bound(vocab_size: int, logit_norm: float) -> float:
    """Nats: the least entropy of softmax(u) over all u in R^V with ||u - mean(u) 1|| <= logit_norm; attained.

    Falls from log V at 0; below about 1e-308 it is 0.0, see `log_entropy_lower_bound`. Raises ValueError if
    vocab_size is below 1 or logit_norm negative or nan.
    """
    _check(vocab_size, logit_norm)
    if vocab_size == 1 or logit_norm == math.inf:
        return 0.0
    d = _gap(vocab_size, logit_norm)
    x = math.log(vocab_size - 1) - d
    if x < 0:
        odds = math.exp(x)
        return math.log1p(odds) + d * odds / (1 + odds)
    return x + math.log1p(math.exp(-x)) + d / (1 + math.exp(-x))


def log_entropy_lower_bound(vocab_size: int, logit_norm: float) -> float:
    """log of `entropy_lower_bound`, also where that underflows; -inf where it is exactly 0 (V = 1, infinite norm)."""
    _check(vocab_size, logit_norm)
    if vocab_size == 1 or logit_norm == math.inf:
        return -math.inf
    d = _gap(vocab_size, logit_norm)
    x = math.log(vocab_size - 1) - d
    if x > -40:
        return math.log(entropy_lower_bound(vocab_size, logit_norm))
    return x + math.log1p(d)  # e^x (1 + d), to a relative e^x < 1e-17


def head_logit_norm(hidden_size: int, sigma_c: float, sigma_h: float) -> float:
    """sigma_C sigma_h sqrt(D), the paper's Lemma 4.1: an upper bound of ||C h||.

    sigma_c: spectral norm of C. sigma_h: largest |h_i|, or the root mean square of one h, which is less and enough,
    since ||h|| = rms(h) sqrt(D). Not the standard deviation of the elements of C: that is smaller than the spectral
    norm by a factor of sqrt(V) + sqrt(D) for independent elements, and no bound follows from it.
    """
    return sigma_c * sigma_h * math.sqrt(hidden_size)


def logit_norm_of_std(vocab_size: int, logit_std: float) -> float:
    """||u - mean(u) 1|| of V logits whose standard deviation (correction 0) over the vocabulary is logit_std."""
    return logit_std * math.sqrt(vocab_size)


def normalised_gap(vocab_size: int, logit_norm: float) -> float:
    """(log V - lower bound) / log V, in 0..1, as in the paper's Figure 4: the share of entropies within reach.

    Raises ValueError if vocab_size is below 2.
    """
    if vocab_size < 2:
        raise ValueError(f"vocab_size must be at least 2, not {vocab_size}: one class has no entropy to reach")
    return 1 - entropy_lower_bound(vocab_size, logit_norm) / math.log(vocab_size)


def softcap_entropy_bound(vocab_size: int, softcap: float, temperature: float = 1.0) -> float:
    """Nats: the least entropy of softmax(s / temperature) with every |s_v| <= softcap; attained in the limit.

    At a minimum every coordinate is at an end of its interval: inside it dH/du_i = 0 only at u_i = E_p u, where the
    second derivative is -p_i (1 - p_i) < 0. So k coordinates are up and V - k down, 2 softcap / temperature apart;
    the best k is not always 1. Holds beside `entropy_lower_bound`. Raises ValueError on what is not positive.
    """
    if vocab_size < 1 or not softcap > 0 or not temperature > 0:
        raise ValueError(f"all must be positive: vocab_size {vocab_size}, softcap {softcap}, temperature {temperature}")
    if vocab_size == 1:
        return 0.0
    up = np.arange(1, vocab_size, dtype=np.float64)
    d = 2 * softcap / temperature
    x = np.log(vocab_size - up) - np.log(up) - d  # log odds of being down
    lse = np.logaddexp(np.log(up), np.log(vocab_size - up) - d)  # the upper value at 0
    return float((lse + d * np.exp(-np.logaddexp(0.0, -x))).min())


def _gap(vocab_size: int, logit_norm: float) -> float:
    return logit_norm * math.sqrt(vocab_size / (vocab_size - 1))


def _check(vocab_size: int, logit_norm: float) -> None:
    if vocab_size < 1:
        raise ValueError(f"vocab_size must be at least 1, not {vocab_size}")
    if not logit_norm >= 0:
        raise ValueError(f"logit_norm must not be negative, and not {logit_norm}")
