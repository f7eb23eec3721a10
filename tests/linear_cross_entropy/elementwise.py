"""The elementwise functions of fp32 kernels against fp64, in the interpreter and on a GPU alike."""

# ruff: noqa: N803 - Triton writes compile-time constants in capitals

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.linear_cross_entropy.primitives import accurate_exp, capped

EPS = torch.finfo(torch.float32).eps
COUNT = 2**14


@triton.jit
def exp_kernel(x, y, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    tl.store(y + at, accurate_exp(tl.load(x + at)))


@triton.jit
def capped_kernel(z, s, slope, softcap, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    capped_logit, derivative = capped(tl.load(z + at), softcap, True)
    tl.store(s + at, capped_logit)
    tl.store(slope + at, derivative)


def check_accurate_exp(device: str) -> None:
    x = torch.linspace(-87, 88, COUNT, device=device)
    x[:3] = torch.tensor([-float("inf"), -1e30, -88.0])
    x[-1] = 0.0
    y = torch.empty_like(x)
    exp_kernel[(1,)](x, y, COUNT=COUNT)
    assert y[:3].tolist() == [0.0, 0.0, 0.0] and y[-1] == 1.0
    assert _relative(y[3:], x[3:].double().exp()) <= EPS


def check_precise_softcap(device: str) -> None:
    for softcap in (2.0, 30.0):
        z = torch.linspace(-4 * softcap, 4 * softcap, COUNT, device=device)
        s, slope = torch.empty_like(z), torch.empty_like(z)
        capped_kernel[(1,)](z, s, slope, softcap, COUNT=COUNT)
        t = torch.tanh(z.double() / softcap)
        assert _relative(s, softcap * t) <= 2 * EPS
        # a slope is only as good as z / softcap, whose rounding it multiplies by 2 |x| t
        assert _relative(slope, (1 - t) * (1 + t)) <= 6 * EPS
        eager = torch.tanh(z / softcap)
        assert _relative(slope, (1 - t) * (1 + t)) <= _relative(1 - eager * eager, (1 - t) * (1 + t))


def _relative(value: Tensor, exact: Tensor) -> float:
    return float(((value.double() - exact) / exact).abs().max())
