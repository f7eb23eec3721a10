"""The orders of the vocabulary that a head's sparsity is looked at in, by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.linear_cross_entropy.vocabulary_order import average_logit_order, balanced_tree, logit_features

Order = Callable[[Tensor, Tensor, int], Tensor]  # (linear_weight (V, D), input (N, D), tile) -> (V,) int64


def _tokenizer(linear_weight: Tensor, _input: Tensor, _tile: int) -> Tensor:
    return torch.arange(len(linear_weight), device=linear_weight.device)


def _average_logit(linear_weight: Tensor, input: Tensor, _tile: int) -> Tensor:
    order: Tensor = average_logit_order(linear_weight, input)
    return order


def _weight_tree(linear_weight: Tensor, _input: Tensor, tile: int) -> Tensor:
    order: Tensor = balanced_tree(linear_weight.float(), tile)
    return order


def _logit_tree(linear_weight: Tensor, input: Tensor, tile: int) -> Tensor:
    order: Tensor = balanced_tree(logit_features(linear_weight, input), tile)
    return order


ORDERS: dict[str, Order] = {
    "tokenizer": _tokenizer,  # as it is
    "average-logit": _average_logit,  # the paper's
    "weight-tree": _weight_tree,  # halves along the principal direction of linear_weight's rows
    "logit-tree": _logit_tree,  # the same of what the rows do to logits
}
