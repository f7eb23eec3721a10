"""Sparsity and errors of a head's softmax, against a dense fp64 computation written out."""

# ruff: noqa: N806 - E and C are the names of the glossary

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness.capture.sparsity import FILTER_THRESHOLD, PAD, TOKEN_BLOCK, Sparsity, sparsity
from kernels.linear_cross_entropy.vocabulary_order import balanced_tree, logit_features

TOKENS, HIDDEN, VOCAB, TILE = 150, 12, 700, 32


def head(seed: int = 0, scale: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(20, HIDDEN, generator=generator)
    label = torch.randint(20, (VOCAB,), generator=generator)
    weight = (centres[label] + 0.1 * torch.randn(VOCAB, HIDDEN, generator=generator)) * scale
    input = torch.randn(TOKENS, HIDDEN, generator=generator)
    input[:, 0], weight[:, 0] = 2.0, -torch.arange(VOCAB) / 50  # most classes are rare in every context
    target = torch.multinomial((input @ weight.t()).softmax(1), 1, generator=generator)[:, 0]
    return input, weight, target


def dense(input: Tensor, weight: Tensor, target: Tensor, order: Tensor, threshold: float) -> dict[str, float]:
    E, C = input.double(), weight[order].double()
    position = torch.empty_like(order)
    position[order] = torch.arange(VOCAB)
    p = (E @ C.t()).softmax(1)
    onehot = torch.nn.functional.one_hot(position[target], VOCAB).double()
    dz = p - onehot
    tiles = [slice(start, min(start + TILE, VOCAB)) for start in range(0, VOCAB, TILE)]
    kept, modelled, pairs, padded, blocks, dropped = dz.clone(), dz.clone(), 0, 0, 0, 0.0
    average = C @ E.mean(0)
    for tile in tiles:
        mass = p[:, tile].sum(1)
        pair = (mass > threshold) | (onehot[:, tile].sum(1) > 0)
        pairs += int(pair.sum())
        padded += -(-int(pair.sum()) // PAD) * PAD
        model = mass[:, None] * average[tile].softmax(0)
        modelled[:, tile] = torch.where(pair[:, None], dz[:, tile], model)
        for start in range(0, TOKENS, TOKEN_BLOCK):
            rows = slice(start, start + TOKEN_BLOCK)
            if float(dz[rows, tile].abs().max()) > FILTER_THRESHOLD:
                blocks += 1
            else:
                kept[rows, tile] = 0
                dropped += float(mass[rows].sum())
    error = lambda a, b: float((a - b).norm() / b.norm())  # noqa: E731
    return {
        "pairs": pairs / (TOKENS * len(tiles)),
        "padded": padded / (TOKENS * len(tiles)),
        "blocks": blocks / (-(-TOKENS // TOKEN_BLOCK) * len(tiles)),
        "dropped": dropped / TOKENS,
        "filter": error(kept @ C, dz @ C),
        "filter_weight": error(kept.t() @ E, dz.t() @ E),
        "tail": error(modelled @ C, dz @ C),
        "tail_weight": error(modelled.t() @ E, dz.t() @ E),
    }


@pytest.mark.parametrize("slice_bytes", [1, 4 * TOKENS * TILE * 3, 1 << 30])
@pytest.mark.parametrize("shuffled", [False, True])
def test_equals_the_dense_computation(slice_bytes: int, shuffled: bool) -> None:
    input, weight, target = head()
    order = torch.randperm(VOCAB) if shuffled else torch.arange(VOCAB)
    found = sparsity(
        "any", input, weight, target, order=order, tile=TILE, mass_thresholds=(2.0**-5,), slice_bytes=slice_bytes
    )
    expected = dense(input, weight, target, order, 2.0**-5)
    # the case proves something
    assert 0 < expected["pairs"] < 1
    assert shuffled or (0 < expected["blocks"] < 1 and expected["dropped"] > 0)
    (tail,) = found.tail
    values = {
        "pairs": tail.pairs,
        "padded": tail.padded,
        "blocks": found.blocks,
        "dropped": found.dropped_mass,
        "filter": found.filter_input_error,
        "filter_weight": found.filter_weight_error,
        "tail": tail.input_error,
        "tail_weight": tail.weight_error,
    }
    assert values == pytest.approx(expected, rel=2e-4, abs=1e-7)


def test_bounds() -> None:
    """With every pair exact nothing is lost; what the targets' tiles alone leave is all modelled."""
    input, weight, target = head()
    all_pairs, none = sparsity("any", input, weight, target, tile=TILE, mass_thresholds=(-1.0, 2.0)).tail
    assert (all_pairs.pairs, all_pairs.input_error, all_pairs.weight_error) == (1.0, 0.0, 0.0)
    assert none.pairs == pytest.approx(1 / -(-VOCAB // TILE))
    assert none.input_error > 0.01


def test_ignored_rows_are_left_out() -> None:
    input, weight, target = head()
    target[::3] = -100
    kept = target != -100
    assert sparsity("any", input, weight, target, tile=TILE) == sparsity(
        "any", input[kept], weight, target[kept], tile=TILE
    )


def test_a_tree_makes_tiles_alike() -> None:
    """The order that it is for: fewer pairs, and a tail that fits, than any order of shuffled classes."""
    input, weight, target = head()
    tree = balanced_tree(logit_features(weight, input), TILE)
    shuffled = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(0))
    found: dict[str, Sparsity] = {
        name: sparsity(name, input, weight, target, order=order, tile=TILE, mass_thresholds=(2.0**-5,))
        for name, order in (("tree", tree), ("shuffled", shuffled))
    }
    tree_tail, tail = found["tree"].tail[0], found["shuffled"].tail[0]
    assert tree_tail.pairs < tail.pairs
    assert tree_tail.input_error < 0.5 * tail.input_error


def test_softcap_is_applied() -> None:
    input, weight, target = head(scale=4.0)
    capped = sparsity("any", input, weight, target, tile=TILE, softcap=2.0)
    assert capped.tiles_of_a_token[0] > sparsity("any", input, weight, target, tile=TILE).tiles_of_a_token[0]


def test_an_order_that_is_none() -> None:
    input, weight, target = head()
    with pytest.raises(ValueError, match="order must be a permutation of the 700 classes"):
        sparsity("any", input, weight, target, order=torch.zeros(VOCAB, dtype=torch.int64))
