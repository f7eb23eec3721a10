"""`ours-*`: this project's own kernels, `kernels.linear_cross_entropy`, and their ablations. Presets are data.

Library: this repository. On a GPU Triton kernels, on a CPU chunked torch with the same semantics (and a block filter,
of other blocks), which is what code tested on a CPU gets. Supports every case.

- `ours` is `gradient="auto"`: pairs of token and vocabulary tile that matter are computed, the others modelled;
  classes in the order of a balanced tree, or as they are where that is as good, decided once on other tokens of the
  same head, and paid for as if every 500 calls; where too many pairs matter, it is `ours-exact`. `ours-corrected`
  models however many matter, slower then: it shows what the model does there.
- `ours-no-sort` leaves the tokenizer's order, `ours-average-logit-sort` takes the paper's, `ours-no-tail` leaves the
  modelled part out, `ours-no-first-order` its first-order terms; `ours-token-groups` models up to 32 groups of tokens
  apart.
- `ours-exact` recomputes the logits slice by slice in the backward and computes every tile: deterministic.
- `ours-paper` is the paper's kernel: tiles in which no logit gradient exceeds 2^-12 are skipped, the vocabulary is
  sorted by average logit; `ours-paper-no-sort` leaves the order as it is, `ours-paper-no-filter` filter and order.
- `ours-fused`: the paper's fused version, gradients in the forward, scaled by the backward; `ours-fused-no-filter` the
  same of `ours-exact`.

The loss is fp32 whatever the inputs' dtype, as in the contract. What the filter drops is lost, as in the paper,
smoothing with the rest of the tile.
"""

from __future__ import annotations

import math
import statistics
import time
from typing import TYPE_CHECKING, Any

from implementations.contract import Case, Implementation

if TYPE_CHECKING:
    from torch import Tensor

    from kernels import LinearCrossEntropyLoss

STATED = (
    "active_fraction",
    "padded_fraction",
    "modelled_mass",
    "expected_input_error",
    "input_bound",
    "expected_weight_error",
    "weight_estimate",
    "arithmetic_error",
)  # of GradientStats

_ORDERS_TIMED = 3

MODELLING = ("auto", "corrected")  # what keeps an order and has figures

PRESETS: dict[str, dict[str, Any]] = {
    "auto": {"gradient": "auto"},
    "no_sort": {"gradient": "auto", "order": "none"},
    "average_logit_sort": {"gradient": "auto", "order": "average-logit"},
    "token_groups": {"gradient": "auto", "token_groups": 32},
    "corrected": {"gradient": "corrected"},
    "no_tail": {"gradient": "auto", "model_tail": False},
    "no_first_order": {"gradient": "auto", "first_order": False},
    "exact": {"gradient": "exact"},
    "paper": {"gradient": "filtered"},
    "paper_no_sort": {"gradient": "filtered", "sort_vocabulary": False},
    "paper_no_filter": {"gradient": "filtered", "filter_eps": None},
    "fused": {"gradient": "filtered", "fused": True},
    "fused_no_filter": {"gradient": "exact", "fused": True},
}


def fused_in_forward(case: Case) -> bool:
    """One scalar scales stored gradients; a gradient per token needs the backward."""
    return case.reduction != "none"


class OwnLoss:
    """The loss function of a preset. One module for each setting, which keeps the vocabulary order of its head.

    Unprepared, as in a training, it computes that anew now and then, as the module does by default.
    """

    def __init__(self, preset: str, **options: Any) -> None:
        self._settings = PRESETS[preset] | options
        self._modules: dict[tuple[object, ...], LinearCrossEntropyLoss] = {}

    def __call__(
        self,
        input: Tensor,  # (N, D)
        linear_weight: Tensor,  # (V, D)
        target: Tensor,  # (N,)
        *,
        linear_bias: Tensor | None,  # (V,)
        **settings: Any,  # label_smoothing, ignore_index, softcap, reduction
    ) -> Tensor:
        value: Tensor = self._module(linear_weight, settings)(input, linear_weight, target, linear_bias)
        return value

    def prepare(
        self,
        input: Tensor,  # (N, D)
        linear_weight: Tensor,  # (V, D)
        target: Tensor,  # (N,)
        *,
        linear_bias: Tensor | None,  # noqa: ARG002  (no order depends on it)
        **settings: Any,
    ) -> None:
        """Computes the order that is kept from now on: a refresh would fit it to the tokens that are timed."""
        key = self._key(linear_weight, settings)
        self._modules[key] = self._new_module(settings, order_interval=0)  # what refreshes cost is in figures
        self._modules[key].layout(input.detach().requires_grad_(), linear_weight, target)

    def figures(
        self,
        input: Tensor,  # (N, D)
        linear_weight: Tensor,  # (V, D)
        target: Tensor,  # (N,)
        *,
        upstream: Tensor,
        linear_bias: Tensor | None,  # (V,)
        **settings: Any,
    ) -> dict[str, float]:
        """The path taken, shares of (token, vocabulary tile) pairs, stated errors; and what an order costs, in ms."""
        if self._settings["gradient"] not in MODELLING:
            return {}
        import torch

        from kernels.linear_cross_entropy.kept_order import INTERVAL

        module = self._new_module(settings, return_stats=True, order_interval=0)
        module.load_state_dict(self._module(linear_weight, settings).state_dict())  # the order that was measured
        loss, stats = module(input, linear_weight, target, linear_bias)
        torch.autograd.backward(loss, upstream.to(loss.dtype))
        told = {"dense": float(stats.path == "dense")}
        told |= {name: value for name in STATED if math.isfinite(value := getattr(stats, name))}
        if module.get_extra_state()["_head"] is not None:  # it keeps one here
            told["ordered"] = float(module.vocabulary_order is not None)
            told["order_ms"] = _order_ms(module, input, linear_weight, target)
            told |= {"amortised_ms": told["order_ms"] / INTERVAL, "amortised_calls": INTERVAL}
        return told

    def _module(self, linear_weight: Tensor, settings: dict[str, Any]) -> LinearCrossEntropyLoss:
        key = self._key(linear_weight, settings)
        if key not in self._modules:
            self._modules[key] = self._new_module(settings)
        return self._modules[key]

    def _key(self, linear_weight: Tensor, settings: dict[str, Any]) -> tuple[object, ...]:
        return (*settings.values(), linear_weight.shape)

    def _new_module(self, settings: dict[str, Any], **more: Any) -> LinearCrossEntropyLoss:
        from kernels import LinearCrossEntropyLoss

        return LinearCrossEntropyLoss(**settings, **self._settings, **more)


def _order_ms(module: LinearCrossEntropyLoss, input: Tensor, linear_weight: Tensor, target: Tensor) -> float:
    """Milliseconds of one order, and of the look at its worth, by the host's clock: it reads results in between.

    The median of a few: it is added to every sample of a row, where no interval would show its scatter.
    """
    import torch

    def now_ms() -> float:
        if input.is_cuda:
            torch.cuda.synchronize(input.device)
        return 1e3 * time.perf_counter()

    taken = []
    for _ in range(_ORDERS_TIMED):
        begin_ms = now_ms()
        module.refresh_order(input, linear_weight, target)
        taken.append(now_ms() - begin_ms)
    return statistics.median(taken)


def _ours(preset: str) -> Implementation:
    settings = PRESETS[preset]
    models = settings["gradient"] in MODELLING

    def build() -> OwnLoss:
        return OwnLoss(preset)

    def build_with_a_knob(gradient_tolerance: float | None = None) -> OwnLoss:
        return OwnLoss(preset, gradient_tolerance=gradient_tolerance)

    return Implementation(
        build=build_with_a_knob if models else build,
        grads_in_forward=fused_in_forward if settings.get("fused") else False,
        deterministic=settings["gradient"] == "exact",
        skips_work=models or (settings["gradient"] == "filtered" and settings.get("filter_eps", 1) is not None),
        autotunes=False,
    )


exact, paper, paper_no_sort = map(_ours, ("exact", "paper", "paper_no_sort"))
paper_no_filter, fused, fused_no_filter = map(_ours, ("paper_no_filter", "fused", "fused_no_filter"))
auto, no_sort, average_logit_sort = map(_ours, ("auto", "no_sort", "average_logit_sort"))
no_tail, no_first_order = map(_ours, ("no_tail", "no_first_order"))
corrected, token_groups = map(_ours, ("corrected", "token_groups"))
