"""A vocabulary order that is kept from call to call and refreshed now and then."""

from typing import Any

import torch
from torch import Tensor

from kernels.linear_cross_entropy.config import tail_tile_classes
from kernels.linear_cross_entropy.vocabulary_order import average_logit_order, balanced_tree, logit_features

ORDERS = ("tree", "average-logit", "none")
INTERVAL = 500  # forwards: on a Gemma-2 head an order costs what 0.003 forwards do, and weights move slowly


class KeptOrder:
    """The order of one head's classes.

    kind: "tree" keeps classes together whose logits move together; "average-logit" sorts by the mean logit, as the
    paper does; "none" leaves the classes as they are. interval: forwards between two orders; 0 keeps the first.
    Raises ValueError for other values.
    """

    def __init__(self, kind: str = "tree", interval: int = INTERVAL) -> None:
        if kind not in ORDERS:
            raise ValueError(f"order: {kind!r}; allowed are {', '.join(ORDERS)}")
        if not isinstance(interval, int) or interval < 0:
            raise ValueError(f"order_interval: {interval!r}; it must be an integer, 0 or more")
        self.kind, self.interval = kind, interval
        self.order: Tensor | None = None  # (V,) int64
        self._age = 0  # forwards since the order was computed

    def of(self, input: Tensor, linear_weight: Tensor) -> Tensor | None:
        """The order for this forward: computed when there is none for the head, or the last is too old.

        None where gradients are not tail-corrected. Under torch.compile the order that is there, if there is one.
        input (..., D), linear_weight (V, D).
        """
        if self.kind == "none":
            return None
        fits = self.order is not None and self.order.shape[0] == linear_weight.shape[0]
        if torch.compiler.is_compiling():
            return self.order if fits else None
        wants_gradient = torch.is_grad_enabled() and (input.requires_grad or linear_weight.requires_grad)
        tokens = input.detach().reshape(-1, input.shape[-1])
        if not wants_gradient or not tail_tile_classes(tokens, linear_weight, _computed_dtype(input)):
            return None
        if not fits or (self.interval > 0 and self._age >= self.interval):
            self.refresh(input, linear_weight)
        assert self.order is not None
        self.order = self.order.to(linear_weight.device)
        self._age += 1
        return self.order

    @torch.no_grad()
    def refresh(self, input: Tensor, linear_weight: Tensor) -> None:
        """Computes the order from input (..., D) and linear_weight (V, D)."""
        dtype = _computed_dtype(input)
        tokens, weight = input.detach().reshape(-1, input.shape[-1]).to(dtype), linear_weight.to(dtype)
        if self.kind == "average-logit":
            self.order = average_logit_order(weight, tokens)
        elif self.kind == "tree":
            self.order = balanced_tree(logit_features(weight, tokens), tail_tile_classes(tokens, weight) or 256)
        self._age = 0

    def state(self) -> dict[str, Any]:
        """What `load` takes."""
        return {"vocabulary_order": self.order, "age": self._age}

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` gave."""
        self.order, self._age = state["vocabulary_order"], state["age"]


def _computed_dtype(input: Tensor) -> torch.dtype:
    """The dtype in which the loss will be computed: autocast's inside of it."""
    kind = input.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
