"""Vocabulary orders: permutations that put what behaves alike side by side, whatever order it came in."""

# ruff: noqa: N803, N806 - N, D, V, E and C are the names of the glossary

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.linear_cross_entropy.vocabulary_order import (
    average_logit_order,
    balanced_tree,
    logit_features,
    principal_coordinate,
)


@settings(max_examples=40, deadline=None)
@given(V=st.integers(1, 400), F=st.integers(1, 5), tile=st.integers(1, 130), seed=st.integers(0, 3))
def test_a_permutation_whatever_the_shape(V: int, F: int, tile: int, seed: int) -> None:
    features = torch.randn(V, F, generator=torch.Generator().manual_seed(seed))
    order = balanced_tree(features, tile)
    assert torch.equal(order.sort().values, torch.arange(V))


@pytest.mark.parametrize("copies", [16, 17])
def test_clusters_become_tiles(copies: int) -> None:
    """17 copies: tiles hold 16, so one class of each cluster has to live elsewhere; most still sit together."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(12, 8, generator=generator) * 10
    label = torch.arange(12).repeat_interleave(copies)[torch.randperm(12 * copies, generator=generator)]
    order = balanced_tree(centres[label] + 0.01 * torch.randn(len(label), 8, generator=generator), 16)
    tiles = label[order].split(16)
    mixed = sum(len(tile.unique()) - 1 for tile in tiles)
    assert mixed == 0 if copies == 16 else mixed <= len(tiles)


def test_a_ragged_last_tile_stays_last() -> None:
    """Splits at multiples of the tile: 5 points on a line, tile 2, are cut after 4."""
    order = balanced_tree(torch.tensor([[3.0], [0.0], [4.0], [1.0], [2.0]]), 2)
    groups = [set(order[:2].tolist()), set(order[2:4].tolist()), set(order[4:].tolist())]
    line = [[1, 3], [4, 0], [2]]  # ascending values, by index
    ascending, descending = [set(g) for g in line], [{2, 0}, {4, 3}, {1}]
    assert groups in (ascending, descending)


def test_principal_coordinate_is_that_of_an_eigendecomposition() -> None:
    points = torch.randn(3, 200, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([5.0, 1, 1, 1, 1, 0.1])
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1))).Q
    points = points @ rotation + 3
    found = principal_coordinate(points)
    for batch in range(3):
        centred = points[batch] - points[batch].mean(dim=0)
        top = torch.linalg.eigh(centred.t() @ centred).eigenvectors[:, -1]
        expected = centred @ top
        sign = torch.sign((found[batch] * expected).sum())
        torch.testing.assert_close(found[batch], sign * expected, rtol=1e-3, atol=1e-3)


def test_equal_points_are_no_error() -> None:
    order = balanced_tree(torch.ones(100, 4), 16)
    assert torch.equal(order.sort().values, torch.arange(100))


def test_features_measure_how_logits_differ() -> None:
    """Squared distances of features are mean squared differences of centred logits."""
    generator = torch.Generator().manual_seed(0)
    E = torch.randn(500, 24, generator=generator) * torch.linspace(0.1, 2, 24) + 1
    C = torch.randn(60, 24, generator=generator)
    features = logit_features(C, E, directions=24)
    z = E @ C.t()
    centred = z - z.mean(dim=0)
    expected = (centred[:, :, None] - centred[:, None, :]).square().mean(dim=0)
    torch.testing.assert_close(torch.cdist(features[:, :-1], features[:, :-1]).square(), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(features[:, -1], z.mean(dim=0), rtol=1e-4, atol=1e-4)


def test_features_are_deterministic_and_leave_the_generator_alone() -> None:
    E, C = torch.randn(300, 40), torch.randn(50, 40)
    torch.manual_seed(7)
    first, after = logit_features(C, E, 8), torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(after, torch.rand(1))
    assert torch.equal(first, logit_features(C, E, 8))


def test_average_logit_order() -> None:
    E, C = torch.randn(30, 8), torch.randn(20, 8)
    average = (E @ C.t()).mean(dim=0)
    assert bool((average[average_logit_order(C, E)].diff() <= 1e-5).all())


def test_a_bad_tile_is_named() -> None:
    with pytest.raises(ValueError, match="tile must be at least 1, got 0"):
        balanced_tree(torch.ones(4, 2), 0)
