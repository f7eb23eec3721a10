"""The plan of the backward: every class once, no dz over rows of dC that are written, memory as promised."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.linear_cross_entropy.config import SPARE_BYTES, vocabulary_groups
from kernels.linear_cross_entropy.problem import Problem
from kernels.linear_cross_entropy.slices import (
    GRAIN,
    Scratch,
    Slice,
    even_width,
    plan_slices,
    row_stride,
    scratch_elements,
)

GEMMA2 = dict(tokens=8192, vocab_size=256000, hidden_size=2304, itemsize=2)


def extra_bytes(slices: list[Slice], tokens: int, itemsize: int) -> int:
    return max((tokens * row_stride(p.width) * itemsize for p in slices if p.offset is None), default=0)


@given(
    tokens=st.integers(1, 40000),
    vocab_size=st.integers(1, 300000),
    hidden_size=st.integers(1, 8192),
    itemsize=st.sampled_from([2, 4]),
    in_place=st.booleans(),
    programs=st.sampled_from([4, 108, 132]),
    packed=st.booleans(),
)
def test_plan(tokens, vocab_size, hidden_size, itemsize, in_place, programs, packed) -> None:
    slices = plan_slices(tokens, vocab_size, hidden_size, itemsize, in_place=in_place, programs=programs, packed=packed)
    assert [p.start for p in slices] == [0, *(p.stop for p in slices[:-1])]
    assert slices[-1].stop == vocab_size
    for piece in slices:
        assert piece.width % GRAIN == 0 or piece.stop == vocab_size
        elements = scratch_elements(piece.width, tokens, hidden_size, packed)
        if piece.offset is None:
            assert elements * itemsize <= SPARE_BYTES or piece.width < 2 * GRAIN
        else:
            assert in_place
            assert piece.offset >= piece.stop * hidden_size  # behind the rows this slice writes
            assert piece.offset + elements <= vocab_size * hidden_size
            assert piece.offset % 64 == 0


def test_gemma2_head() -> None:
    slices = plan_slices(**GEMMA2, in_place=True, programs=132)
    gradients = (8192 + 256000) * 2304 * 2
    extra = extra_bytes(slices, 8192, 2)
    fp32_input_gradient, narrow_input_gradient = 8192 * 2304 * 4, 8192 * 2304 * 2
    during = 256000 * 2304 * 2 + fp32_input_gradient + extra
    after = 256000 * 2304 * 2 + fp32_input_gradient + narrow_input_gradient
    assert max(during, after) <= 1.15 * gradients
    assert sum(p.offset is not None for p in slices) >= len(slices) / 2  # most of them cost nothing
    assert slices[0].width == 128 * 132


def test_gemma2_head_sorted() -> None:
    slices = plan_slices(**GEMMA2, in_place=True, programs=132, packed=True)
    extra = max(2 * scratch_elements(p.width, 8192, 2304, True) for p in slices if p.offset is None)
    assert extra <= SPARE_BYTES
    assert len(slices) <= 30 and slices[0].width == 128 * 132
    assert 256000 * 2304 * 2 + 8192 * 2304 * 4 + extra <= 1.10 * (8192 + 256000) * 2304 * 2


def test_scratch_lies_where_the_plan_says() -> None:
    grad_weight = torch.zeros(4000, 60)
    problem = Problem(torch.zeros(100, 60), torch.zeros(4000, 60), None, torch.zeros(100), 0.0, -100, 0.0)
    slices = plan_slices(100, 4000, 60, 4, in_place=True, programs=4, packed=True)
    scratch = Scratch(slices, problem, grad_weight, packed=True)
    for piece in slices:
        dz, packed = scratch.logit_gradient(piece), scratch.packed_weight(piece)
        assert dz.shape == (100, piece.width) and packed.shape == (piece.width, 60)
        dz.fill_(1.0)
        packed.fill_(2.0)
        assert bool((dz == 1.0).all())  # they do not overlap
        inside = piece.offset is not None
        assert (dz.untyped_storage().data_ptr() == grad_weight.untyped_storage().data_ptr()) == inside
        assert grad_weight[: piece.stop].abs().max() == 0 or not inside
        grad_weight.zero_()


@pytest.mark.parametrize("programs", [4, 108, 114, 132])
def test_even_width(programs: int) -> None:
    for most in (256, 1000, 4096, 10**6):
        width = even_width(most, programs)
        assert 0 < width <= max(most, GRAIN) and width % GRAIN == 0
    assert even_width(10**6, 132) == 16896  # 32 waves of dz tiles, 9 waves of dC tiles, on 132 SMs


@given(token_blocks=st.integers(1, 3000), tiles=st.integers(1, 1200), programs=st.sampled_from([4, 108, 132]))
def test_vocabulary_groups(token_blocks: int, tiles: int, programs: int) -> None:
    groups = vocabulary_groups(token_blocks, tiles, programs, most=16)
    assert 1 <= groups <= min(16, tiles)
    waste = -(-token_blocks * groups // programs) * -(-tiles // groups) * programs / (token_blocks * tiles)
    alone = -(-token_blocks // programs) * tiles * programs / (token_blocks * tiles)
    assert waste <= alone * 1.01


def test_vocabulary_groups_of_the_gemma2_head() -> None:
    assert vocabulary_groups(64, 1000, 132, most=10) == 2  # 128 of 132 multiprocessors, in lockstep
