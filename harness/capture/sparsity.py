"""How little of a softmax matters, tile by tile, and what dropping or modelling the rest costs: in exact arithmetic.

A *tile* is `tile` consecutive classes of an order of the vocabulary. m_nt is the mass that token n has in tile t.

- *pairs*: share of (token, tile) pairs with m_nt above a threshold or with the token's target inside. What a method
  that gathers tokens per tile has to compute; `padded` counts each tile's tokens rounded up to a multiple of PAD.
- *blocks*: share of (128 tokens, tile) blocks in which some |dz| exceeds 2^-12. What a filter of blocks has to compute.
- *dropped mass*: mean over tokens of the mass in blocks that the filter skips.
- errors ||g - g*|| / ||g*|| of dE and dC, beta 0, upstream gradient 1 for every token:
  of the filter, which leaves the other blocks out, and of the *tail model*, which takes the pairs' tiles exactly and
  in the others replaces p_nv by m_nt * q_v, with q the softmax, within a tile, of the logit averaged over all tokens.

Everything is fp32 on the rounded inputs and streams over slices of tiles, twice: lse first. Memory: a few
(N, slice) fp32 tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from harness.worker.inputs import IGNORE_INDEX
from harness.worker.products import product, without_tf32

TOKEN_BLOCK = 128
FILTER_THRESHOLD = 2.0**-12
PAD = 64  # the step in which products over gathered tokens grow
SLICE_BYTES = 1 << 31  # of fp32 logits


@dataclass(frozen=True)
class TailModel:
    """What happens at one threshold of a pair's mass."""

    mass_threshold: float
    pairs: float  # shares of all N * T pairs
    padded: float
    input_error: float
    weight_error: float


@dataclass(frozen=True)
class Sparsity:
    """A head's softmax in one order of its vocabulary."""

    order: str
    tile: int
    blocks: float
    dropped_mass: float
    filter_input_error: float
    filter_weight_error: float
    tail: tuple[TailModel, ...]
    tiles_of_a_token: tuple[
        float, float, float
    ]  # median, 90th and 99th percentile of tiles with m_nt > the first threshold


@dataclass
class _Sums:
    """What one method adds up over slices."""

    grad_input: Tensor  # (N, D): its dE less the exact one
    squared_weight: float = 0.0  # of its dC less the exact one
    pairs: int = 0
    padded: int = 0


@dataclass
class _Slice:
    """A slice of tiles: probabilities and what belongs to its classes."""

    weight: Tensor  # (width, D)
    p: Tensor  # (N, T, tile), zeros in the padding of a ragged last tile
    mass: Tensor  # (N, T)
    hits: Tensor  # (N, T) bool: the tile holds the token's target
    onehot: Tensor = field(repr=False)  # (N, T, tile)
    shape: Tensor = field(repr=False)  # (T, tile): q


@torch.no_grad()
def sparsity(
    name: str,
    input: Tensor,  # (N, D)
    linear_weight: Tensor,  # (V, D)
    target: Tensor,  # (N,)
    *,
    order: Tensor | None = None,  # (V,) int64; None: as it is
    tile: int = 128,
    softcap: float | None = None,
    mass_thresholds: tuple[float, ...] = (2.0**-9, 2.0**-10, 2.0**-11),
    slice_bytes: int = SLICE_BYTES,
) -> Sparsity:
    """Sparsity and errors of the head's softmax in `order`. Rows whose target is ignored are left out.

    With a softcap, p is the softmax of the capped logits and its slope is left out of the gradients: what is asked is
    how well p is modelled. Raises ValueError if `order` is not a permutation of the classes.
    """
    places = torch.arange(len(linear_weight), device=linear_weight.device)
    if order is None:
        order = places
    elif not torch.equal(order.sort().values, places):
        raise ValueError(f"order must be a permutation of the {len(places)} classes, got {tuple(order.shape)} others")
    counted = target != IGNORE_INDEX
    input, target = input[counted], target[counted]
    position = torch.empty_like(order)
    position[order] = places
    with without_tf32():
        head = _Head(input, linear_weight[order], position[target], softcap, tile, slice_bytes)
        return _summarise(name, head, mass_thresholds)


class _Head:
    """Streams a head's probabilities in slices of whole tiles."""

    def __init__(
        self, input: Tensor, weight: Tensor, target: Tensor, softcap: float | None, tile: int, slice_bytes: int
    ) -> None:
        self.input, self.weight, self.target, self.softcap, self.tile = input, weight, target, softcap, tile
        self.width = max(1, slice_bytes // (4 * len(input) * tile)) * tile
        lse = [self._logits(part).logsumexp(dim=1) for part in self._weights()]
        self.lse = torch.stack(lse, dim=1).logsumexp(dim=1)  # (N,)
        self.mean = input.mean(dim=0, dtype=torch.float32).to(weight.dtype)

    def _weights(self) -> Iterator[Tensor]:
        for start in range(0, len(self.weight), self.width):
            yield self.weight[start : start + self.width]

    def _logits(self, weight: Tensor) -> Tensor:
        z = product(self.input, weight.t(), torch.float32)
        return z if self.softcap is None else torch.tanh(z / self.softcap) * self.softcap

    def slices(self) -> Iterator[_Slice]:
        for index, weight in enumerate(self._weights()):
            width = weight.shape[0]
            tiles = -(-width // self.tile)
            padding = tiles * self.tile - width
            p = (self._logits(weight) - self.lse[:, None]).exp_()
            p = torch.nn.functional.pad(p, (0, padding)).view(-1, tiles, self.tile)
            average = product(weight, self.mean[:, None], torch.float32)[:, 0]
            if self.softcap is not None:
                average = torch.tanh(average / self.softcap) * self.softcap
            average = torch.nn.functional.pad(average, (0, padding), value=float("-inf"))
            local = self.target - index * self.width
            inside = (local >= 0) & (local < width)
            onehot = torch.zeros_like(p)
            onehot.view(len(p), -1)[inside, local[inside]] = 1.0
            shape = average.view(tiles, self.tile).softmax(dim=1)
            yield _Slice(weight, p, p.sum(dim=2), onehot.amax(dim=2) > 0, onehot, shape)


def _summarise(name: str, head: _Head, thresholds: tuple[float, ...]) -> Sparsity:
    tokens = len(head.input)
    exact = torch.zeros_like(head.input, dtype=torch.float32)
    blocks, models = _Sums(exact.clone()), [_Sums(exact.clone()) for _ in thresholds]
    squared_weight, dropped, tile_count = 0.0, 0.0, 0
    tiles_of_a_token = torch.zeros(tokens, dtype=torch.int64, device=head.input.device)
    for part in head.slices():
        dz = part.p - part.onehot  # (N, T, tile)
        exact += _input_gradient(dz, part.weight)
        squared_weight += _squared(_weight_gradient(dz, head.input))
        tile_count += part.mass.shape[1]

        active = _active_blocks(dz)  # (token blocks, T)
        skipped = ~active.repeat_interleave(TOKEN_BLOCK, dim=0)[:tokens]  # (N, T)
        blocks.pairs += int(active.sum())
        dropped += float((part.mass * skipped).sum(dtype=torch.float64))
        _add_error(blocks, -dz * skipped[:, :, None], part.weight, head.input)
        tiles_of_a_token += ((part.mass > thresholds[0]) | part.hits).sum(dim=1)

        for threshold, sums in zip(thresholds, models, strict=True):
            pairs = (part.mass > threshold) | part.hits
            rows = pairs.sum(dim=0)
            sums.pairs += int(rows.sum())
            sums.padded += int((-(-rows // PAD) * PAD).sum())
            modelled = part.mass[:, :, None] * part.shape  # (N, T, tile)
            _add_error(sums, (modelled - part.p) * ~pairs[:, :, None], part.weight, head.input)
    token_blocks = -(-tokens // TOKEN_BLOCK)
    input_norm, weight_norm = _squared(exact) ** 0.5, squared_weight**0.5
    quantiles = torch.tensor([0.5, 0.9, 0.99], device=head.input.device)
    median, ninety, most = tiles_of_a_token.float().quantile(quantiles).tolist()
    return Sparsity(
        order=name,
        tile=head.tile,
        blocks=blocks.pairs / (token_blocks * tile_count),
        dropped_mass=dropped / tokens,
        filter_input_error=_squared(blocks.grad_input) ** 0.5 / input_norm,
        filter_weight_error=blocks.squared_weight**0.5 / weight_norm,
        tail=tuple(
            TailModel(
                mass_threshold=threshold,
                pairs=sums.pairs / (tokens * tile_count),
                padded=sums.padded / (tokens * tile_count),
                input_error=_squared(sums.grad_input) ** 0.5 / input_norm,
                weight_error=sums.squared_weight**0.5 / weight_norm,
            )
            for threshold, sums in zip(thresholds, models, strict=True)
        ),
        tiles_of_a_token=(median, ninety, most),
    )


def _active_blocks(dz: Tensor) -> Tensor:
    """(token blocks, T) bool: some |dz| of the block exceeds the filter's threshold."""
    large = (dz.abs().amax(dim=2) > FILTER_THRESHOLD).float()
    padded = torch.nn.functional.pad(large, (0, 0, 0, -large.shape[0] % TOKEN_BLOCK))
    return padded.view(-1, TOKEN_BLOCK, large.shape[1]).amax(dim=1) > 0


def _add_error(sums: _Sums, dz_error: Tensor, weight: Tensor, input: Tensor) -> None:
    sums.grad_input += _input_gradient(dz_error, weight)
    sums.squared_weight += _squared(_weight_gradient(dz_error, input))


def _input_gradient(dz: Tensor, weight: Tensor) -> Tensor:
    return dz.view(len(dz), -1)[:, : len(weight)] @ weight.float()


def _weight_gradient(dz: Tensor, input: Tensor) -> Tensor:  # (T * tile, D)
    return dz.view(len(dz), -1).t() @ input.float()


def _squared(tensor: Tensor) -> float:
    return float(tensor.square().sum(dtype=torch.float64))
