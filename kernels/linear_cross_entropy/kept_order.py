"""A vocabulary order that is kept from call to call and refreshed now and then."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from kernels.linear_cross_entropy.config import tail_tile_classes
from kernels.linear_cross_entropy.problem import Problem
from kernels.linear_cross_entropy.tail.method import default_tolerance
from kernels.linear_cross_entropy.vocabulary_order import (
    average_logit_order,
    balanced_tree,
    logit_features,
    token_centres,
)

ORDERS = ("auto", "tree", "average-logit", "none")
GROUP_TOKENS = 1024  # 8 blocks of tokens: one in eight at most is shared with a neighbour
# Of all pairs: what an order must leave out to be worth its cost, a packed copy of C in the forward and scattered rows
# of dC (together 0.16 to 0.24 of a GEMM on a Gemma-2 head, where all pairs would take 10; docs/kernel-notes.md).
WORTH = 0.02
STATE = ("order", "centres", "_head", "_age", "_span")
# Forwards. An order and the look at its worth took 28 to 78 ms on six heads (reports/models-h200): over so many steps
# 0.3 to 1.2 % of each, and weights move slowly.
INTERVAL = 500
# The first order is kept for so many forwards, every further one for twice as many as the last, up to the interval: at
# the start of a training logits say nothing yet of how classes will move, and weights move fast. Four orders more.
FIRST_INTERVAL = 25


class KeptOrder:
    """The order of one head's classes, and centres of its tokens.

    kind: "tree" keeps classes together whose logits move together; "auto" is the tree if it leaves fewer pairs to
    compute than the classes as they are, by what it costs (WORTH); "average-logit" sorts by the mean logit, as the
    paper does; "none" leaves the classes as they are. interval: forwards between two orders, fewer between the first
    few (FIRST_INTERVAL); 0 keeps the first.
    token_groups: how many centres, 1 for none; fewer where there are fewer than GROUP_TOKENS tokens for each.
    Raises ValueError for other values.
    """

    def __init__(self, kind: str = "auto", interval: int = INTERVAL, token_groups: int = 1) -> None:
        if kind not in ORDERS:
            raise ValueError(f"order: {kind!r}; allowed are {', '.join(ORDERS)}")
        if not isinstance(interval, int) or interval < 0:
            raise ValueError(f"order_interval: {interval!r}; it must be an integer, 0 or more")
        if not isinstance(token_groups, int) or not 1 <= token_groups <= 64:
            raise ValueError(f"token_groups: {token_groups!r}; it must be an integer from 1 to 64")
        self.kind, self.interval, self.token_groups = kind, interval, token_groups
        self.order: Tensor | None = None  # (V,) int64
        self.centres: Tensor | None = None  # (K, D) fp32
        self._head: torch.Size | None = None  # the weight's shape they were computed for
        self._age = 0  # forwards since then
        self._span = FIRST_INTERVAL  # after how many they are too old, if the interval is not over before

    def of(
        self, input: Tensor, linear_weight: Tensor, target: Tensor | None, settings: Mapping[str, Any]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Order and centres for this forward: computed when there are none for the head, or the last are too old.

        None where gradients are not tail-corrected. Under torch.compile what is there, if there is something.
        input (..., D), linear_weight (V, D), target (...); settings: of linear_cross_entropy.
        """
        if self.kind == "none" and self.token_groups == 1:
            return None, None
        fits = self._head == linear_weight.shape
        if torch.compiler.is_compiling():
            return (self.order, self.centres) if fits else (None, None)
        wants_gradient = torch.is_grad_enabled() and (input.requires_grad or linear_weight.requires_grad)
        tokens = input.detach().reshape(-1, input.shape[-1])
        choose = settings.get("gradient") == "auto"
        if not wants_gradient or not tail_tile_classes(tokens, linear_weight, _computed_dtype(input), choose=choose):
            return None, None
        if not fits or (self.interval > 0 and self._age >= min(self.interval, self._span)):
            self.refresh(input, linear_weight, target, settings)
        self._age += 1
        device = linear_weight.device
        self.order, self.centres = (t if t is None else t.to(device) for t in (self.order, self.centres))
        return self.order, self.centres

    @torch.no_grad()
    def refresh(
        self,
        input: Tensor,
        linear_weight: Tensor,
        target: Tensor | None = None,  # without it "auto" is the tree
        settings: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Computes order and centres from input (..., D), linear_weight (V, D) and target (...)."""
        dtype = _computed_dtype(input)
        tokens, weight = input.detach().reshape(-1, input.shape[-1]).to(dtype), linear_weight.to(dtype)
        if self.kind == "average-logit":
            self.order = average_logit_order(weight, tokens)
        elif self.kind in ("auto", "tree"):
            tile_classes = tail_tile_classes(tokens, weight)
            self.order = balanced_tree(logit_features(weight, tokens), tile_classes or 256)
            compares = self.kind == "auto" and target is not None and tile_classes
            if compares and not _is_worth_it(self.order, tile_classes, tokens, weight, target, settings):
                self.order = None
        groups = min(self.token_groups, len(tokens) // GROUP_TOKENS)
        self.centres = token_centres(tokens, groups) if groups > 1 else None
        again = self._head == linear_weight.shape
        self._span = min(2 * self._span, max(self.interval, FIRST_INTERVAL)) if again else FIRST_INTERVAL
        self._head, self._age = linear_weight.shape, 0

    def state(self) -> dict[str, Any]:
        """What `load` takes."""
        return {name: getattr(self, name) for name in STATE}

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` gave."""
        for name in STATE:
            setattr(self, name, state[name])


def _is_worth_it(
    order: Tensor, tile_classes: int, tokens: Tensor, weight: Tensor, target: Tensor, settings: Mapping[str, Any]
) -> bool:
    """Whether the order leaves fewer pairs to compute than none does, by WORTH of all."""
    from kernels.linear_cross_entropy.tail.preview import active_fraction  # noqa: PLC0415 - imports triton

    ignored = settings.get("ignore_index")
    problem = Problem(
        tokens, weight, None, target.reshape(-1).to(torch.int64), settings.get("label_smoothing", 0.0),
        -100 if ignored is None else ignored, settings.get("softcap") or 0.0,
    )  # fmt: skip
    tolerance = settings.get("gradient_tolerance") or default_tolerance(tokens.dtype)
    plain, ordered = (active_fraction(problem, o, tile_classes, tolerance) for o in (None, order))
    return plain - ordered > WORTH


def _computed_dtype(input: Tensor) -> torch.dtype:
    """The dtype in which the loss will be computed: autocast's inside of it."""
    kind = input.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
