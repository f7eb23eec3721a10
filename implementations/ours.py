"""`ours-*`: this project's own kernels, `kernels.linear_cross_entropy`, and their ablations. Presets are data.

Library: this repository. On a GPU Triton kernels, on a CPU chunked torch with the same semantics (and a block filter,
of other blocks), which is what code tested on a CPU gets. Supports every case.

- `ours` is the default: pairs of token and vocabulary tile that matter are computed, the others modelled by their tail,
  classes in the order of a balanced tree that is computed once and refreshed every 500 calls; where too many pairs
  matter, it is `ours-exact`. `ours-no-sort` leaves the tokenizer's order, `ours-average-logit-sort` takes the paper's,
  `ours-no-tail` leaves the modelled part out, `ours-no-first-order` its first-order term; `ours-token-groups` models
  up to 32 groups of tokens apart.
- `ours-exact` recomputes the logits slice by slice in the backward and computes every tile: deterministic.
- `ours-paper` is the paper's kernel: tiles in which no logit gradient exceeds 2^-12 are skipped, the vocabulary is
  sorted by average logit; `ours-paper-no-sort` leaves the order as it is, `ours-paper-no-filter` filter and order.
- `ours-fused`: the paper's fused version, gradients in the forward, scaled by the backward; `ours-fused-no-filter` the
  same of `ours-exact`.

The loss is fp32 whatever the inputs' dtype, as in the contract. What the filter drops is lost, as in the paper;
smoothing never enters a filtered tile, so none of it is.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from implementations.contract import Case, Implementation, LossFunction, Reduction

PRESETS: dict[str, dict[str, Any]] = {
    "auto": {},
    "no_sort": {"order": "none"},
    "average_logit_sort": {"order": "average-logit"},
    "token_groups": {"token_groups": 32},
    "no_tail": {"model_tail": False},
    "no_first_order": {"first_order": False},
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


def build(preset: str) -> LossFunction:
    from kernels import LinearCrossEntropyLoss

    modules: dict[tuple[object, ...], LinearCrossEntropyLoss] = {}  # one a setting: each keeps its head's order

    def loss(
        input: Tensor,  # (N, D)
        linear_weight: Tensor,  # (V, D)
        target: Tensor,  # (N,)
        *,
        linear_bias: Tensor | None,  # (V,)
        label_smoothing: float,
        ignore_index: int,
        softcap: float | None,
        reduction: Reduction,
    ) -> Tensor:
        key = (label_smoothing, ignore_index, softcap, reduction, linear_weight.shape)
        if key not in modules:
            modules[key] = LinearCrossEntropyLoss(
                label_smoothing=label_smoothing,
                ignore_index=ignore_index,
                softcap=softcap,
                reduction=reduction,
                **PRESETS[preset],
            )
        value: Tensor = modules[key](input, linear_weight, target, linear_bias)
        return value

    return loss


def _ours(preset: str) -> Implementation:
    settings = PRESETS[preset]
    models = settings.get("gradient", "auto") == "auto"
    return Implementation(
        build=lambda: build(preset),
        grads_in_forward=fused_in_forward if settings.get("fused") else False,
        skips_work=models or (settings.get("gradient") == "filtered" and settings.get("filter_eps", 1) is not None),
    )


exact, paper, paper_no_sort = map(_ours, ("exact", "paper", "paper_no_sort"))
paper_no_filter, fused, fused_no_filter = map(_ours, ("paper_no_filter", "fused", "fused_no_filter"))
auto, no_sort, average_logit_sort = map(_ours, ("auto", "no_sort", "average_logit_sort"))
no_tail, no_first_order, token_groups = map(_ours, ("no_tail", "no_first_order", "token_groups"))
