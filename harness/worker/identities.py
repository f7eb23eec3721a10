"""What holds for every right loss, whatever its values: no oracle is needed to see it broken.

mass: sum_v dC_v = sum_n (sum_v dz_nv) E_n = 0, for softmax and smoothed targets both sum to 1. A filter that drops
    tiles, or a tile that is forgotten, leaves a rest. Not with a softcap, whose slope weighs the terms differently.
linearity: gradients are linear in the upstream gradient.
permutation: the order of the vocabulary means nothing: gradients of a permuted one are permuted.
shift: adding a constant to all logits of a token changes nothing. A column of linear_weight that is plus or minus one
    power of two throughout adds that times the token's element of input, exactly in every dtype; against the same
    column all zero. A softcap breaks it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.worker.inputs import IGNORE_INDEX, Tensors
from harness.worker.products import slices

_SHIFT = 96.0  # of the token that is moved most, at least, and less than twice that: exp overflows fp32 at 88.7
_LARGEST_VALUE = 2.0**12  # of the constant column
_BLOCK_BYTES = 1 << 27


@dataclass(frozen=True)
class Shift:
    """Which column of linear_weight becomes which constant."""

    column: int
    value: float


def mass(grad_weight: Tensor) -> tuple[float, float, float] | None:
    """norm(sum_v dC_v), sum_v norm(dC_v) and the root of sum_v norm(dC_v)**2 of (V, D); None where it is all zero."""
    total = torch.zeros(grad_weight.shape[1], dtype=torch.float64, device=grad_weight.device)
    norms = torch.zeros(2, dtype=torch.float64, device=grad_weight.device)
    for part in slices(grad_weight.shape[0], 8 * grad_weight.shape[1], _BLOCK_BYTES):
        rows = grad_weight[part].double()
        total += rows.sum(0)
        norm = torch.linalg.vector_norm(rows, dim=1)
        norms += torch.stack([norm.sum(), norm.square().sum()])
    norm_sum, square_sum = norms.tolist()
    return (float(torch.linalg.vector_norm(total)), norm_sum, math.sqrt(square_sum)) if norm_sum else None


def shift_for(input: Tensor) -> Shift | None:
    """The shift for a case with this input (N, D): along its largest column; None if it is all zero.

    The token that it moves most is moved up, where a maximum that was not subtracted overflows; down it would only make
    exp small.
    """
    column = int(torch.linalg.vector_norm(input.detach(), dim=0, dtype=torch.float32).argmax())
    elements = input.detach()[:, column]
    largest = float(elements[elements.abs().argmax()])
    if not largest:
        return None
    value = min(_LARGEST_VALUE, 2.0 ** math.ceil(math.log2(_SHIFT / abs(largest))))
    return Shift(column, math.copysign(value, largest))


@contextmanager
def constant_column(linear_weight: Tensor, column: int, value: float) -> Iterator[None]:
    """linear_weight (V, D) with one column replaced, in place; every bit is back afterwards."""
    with torch.no_grad():
        kept = linear_weight[:, column].clone()
        linear_weight[:, column] = value
    try:
        yield
    finally:
        with torch.no_grad():
            linear_weight[:, column] = kept


@contextmanager
def permuted_vocabulary(tensors: Tensors, order: Tensor) -> Iterator[None]:
    """Class i becomes what was class order[i] (V,), in place, as a training step changes weights; back afterwards.

    In place, so that whatever an implementation has kept for these very tensors is out of date: a stale cache is seen.
    """
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.numel(), device=order.device)
    target = tensors.target.clone()
    with torch.no_grad():
        _reorder(tensors, order)
        tensors.target.copy_(torch.where(target == IGNORE_INDEX, target, inverse[target.clamp(min=0)]))
    try:
        yield
    finally:
        with torch.no_grad():
            _reorder(tensors, inverse)
            tensors.target.copy_(target)


def _reorder(tensors: Tensors, order: Tensor) -> None:
    for tensor in (tensors.linear_weight, tensors.linear_bias):
        if tensor is not None:
            tensor.copy_(tensor[order])


def an_order(vocab_size: int, device: torch.device) -> Tensor:
    """(V,) a permutation without order, the same on every call."""
    return torch.randperm(vocab_size, generator=torch.Generator().manual_seed(vocab_size)).to(device)


def most_shifted(tensors: Tensors, column: int, count: int) -> Tensors:
    """The `count` tokens that count whose logits a constant in `column` moves most, in their order.

    Ignored ones, which nothing moves, only where there are no others left.
    """
    moved = tensors.input[:, column].float().abs().masked_fill(tensors.target == IGNORE_INDEX, -1.0)
    part = moved.topk(count).indices.sort().values
    upstream = tensors.upstream if tensors.upstream.dim() == 0 else tensors.upstream[part]
    return replace(tensors, input=tensors.input[part], target=tensors.target[part], upstream=upstream)
