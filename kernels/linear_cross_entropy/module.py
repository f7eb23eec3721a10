"""The loss as a module: settings fixed once, and a vocabulary order kept and refreshed."""

from typing import Any

import torch
from torch import Tensor, nn

from kernels.linear_cross_entropy.api import linear_cross_entropy
from kernels.linear_cross_entropy.checks import check_settings, check_tail
from kernels.linear_cross_entropy.config import tail_tile_classes
from kernels.linear_cross_entropy.problem import FILTER_EPS
from kernels.linear_cross_entropy.tail.report import GradientStats
from kernels.linear_cross_entropy.vocabulary_order import average_logit_order, balanced_tree, logit_features

ORDERS = ("tree", "average-logit", "none")


class LinearCrossEntropyLoss(nn.Module):
    """`linear_cross_entropy` with its settings fixed; the head's weight stays with the model.

    Equivalent to::

        loss = LinearCrossEntropyLoss(label_smoothing=0.1)
        loss(input, linear_weight, target) == linear_cross_entropy(
            input, linear_weight, target, label_smoothing=0.1, vocabulary_order=loss.vocabulary_order
        )

    Takes every keyword of the function but `linear_bias` and `vocabulary_order`, and checks their values at once.

    For gradient="auto" and "corrected" it keeps the vocabulary's order: computed at the first forward that needs a
    gradient, again every `order_interval` such forwards (the weights move slowly), and part of the state dict. Under
    torch.compile the order that is there is used; `refresh_order` computes one.

    Args:
        order: "tree" keeps classes together whose logits move together; "average-logit" sorts by the mean logit, as the
            paper does; "none" leaves the classes as they are.
        order_interval: forwards between two orders; 0 keeps the first.
    """

    def __init__(self, *, order: str = "tree", order_interval: int = 500, **settings: Any) -> None:
        super().__init__()
        known = set(linear_cross_entropy.__kwdefaults__ or {}) - {"linear_bias", "vocabulary_order"}
        unknown = sorted(set(settings) - known)
        if unknown:
            raise TypeError(f"{unknown[0]}: no such setting; allowed are {', '.join(sorted(known))}")
        if settings.get("weight") is not None:
            raise NotImplementedError("weight: class weights are not supported; leave it None")
        if order not in ORDERS:
            raise ValueError(f"order: {order!r}; allowed are {', '.join(ORDERS)}")
        if not isinstance(order_interval, int) or order_interval < 0:
            raise ValueError(f"order_interval: {order_interval!r}; it must be an integer, 0 or more")
        gradient = settings.get("gradient", "auto")
        check_settings(
            settings.get("label_smoothing", 0.0),
            settings.get("reduction", "mean"),
            settings.get("softcap"),
            gradient,
            settings.get("filter_eps", FILTER_EPS),
            settings.get("ignore_index"),
        )
        check_tail(gradient, settings.get("gradient_tolerance"), settings.get("return_stats", False))
        self.settings = settings
        self.order, self.order_interval = order, order_interval
        self.vocabulary_order: Tensor | None = None
        self._age = 0  # forwards since the order was computed
        self._orders = order != "none" and gradient in ("auto", "corrected") and not settings.get("fused", False)

    def forward(
        self, input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None = None
    ) -> Tensor | tuple[Tensor | GradientStats, ...]:
        """The loss of input (..., D) against target (...), through the head linear_weight (V, D)."""
        if self._orders and not torch.compiler.is_compiling():
            self._keep_order(input, linear_weight)
        order = self.vocabulary_order
        if order is not None and order.shape[0] != linear_weight.shape[0]:
            order = None  # of another head
        return linear_cross_entropy(
            input, linear_weight, target, linear_bias=linear_bias, vocabulary_order=order, **self.settings
        )

    @torch.no_grad()
    def refresh_order(self, input: Tensor, linear_weight: Tensor) -> None:
        """Computes the vocabulary order from input (..., D) and linear_weight (V, D)."""
        tokens = input.detach().reshape(-1, input.shape[-1])
        if self.order == "average-logit":
            self.vocabulary_order = average_logit_order(linear_weight, tokens)
        elif self.order == "tree":
            tile = tail_tile_classes(tokens, linear_weight) or 256
            self.vocabulary_order = balanced_tree(logit_features(linear_weight, tokens), tile)
        self._age = 0

    def _keep_order(self, input: Tensor, linear_weight: Tensor) -> None:
        """The order there should be for this forward."""
        if not (torch.is_grad_enabled() and (input.requires_grad or linear_weight.requires_grad)):
            return
        tokens = input.detach().reshape(-1, input.shape[-1])
        if input.dtype != linear_weight.dtype or not tail_tile_classes(tokens, linear_weight):
            return
        kept = self.vocabulary_order
        if kept is not None and kept.device != linear_weight.device:
            kept = self.vocabulary_order = kept.to(linear_weight.device)
        stale = self.order_interval > 0 and self._age >= self.order_interval
        if kept is None or kept.shape[0] != linear_weight.shape[0] or stale:
            self.refresh_order(input, linear_weight)
        self._age += 1

    def get_extra_state(self) -> dict[str, Any]:
        """The order and its age, for the state dict."""
        return {"vocabulary_order": self.vocabulary_order, "age": self._age}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """What get_extra_state gave."""
        self.vocabulary_order, self._age = state["vocabulary_order"], state["age"]

    def extra_repr(self) -> str:
        parts = [f"{name}={value!r}" for name, value in self.settings.items()]
        return ", ".join([*parts, f"order={self.order!r}", f"order_interval={self.order_interval}"])
