"""The loss as a module, for code that configures losses once and calls them often."""

from typing import Any

from torch import Tensor, nn

from kernels.linear_cross_entropy.api import linear_cross_entropy
from kernels.linear_cross_entropy.checks import check_settings
from kernels.linear_cross_entropy.problem import FILTER_EPS


class LinearCrossEntropyLoss(nn.Module):
    """`linear_cross_entropy` with its settings fixed; the head's weight stays with the model.

    Equivalent to::

        loss = LinearCrossEntropyLoss(label_smoothing=0.1)
        loss(input, linear_weight, target) == linear_cross_entropy(
            input, linear_weight, target, label_smoothing=0.1
        )

    Takes every keyword of the function but `linear_bias`, and checks their values at once.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        known = set(linear_cross_entropy.__kwdefaults__ or {}) - {"linear_bias"}
        unknown = sorted(set(settings) - known)
        if unknown:
            raise TypeError(f"{unknown[0]}: no such setting; allowed are {', '.join(sorted(known))}")
        if settings.get("weight") is not None:
            raise NotImplementedError("weight: class weights are not supported; leave it None")
        check_settings(
            settings.get("label_smoothing", 0.0),
            settings.get("reduction", "mean"),
            settings.get("softcap"),
            settings.get("gradient", "exact"),
            settings.get("filter_eps", FILTER_EPS),
            settings.get("ignore_index"),
        )
        self.settings = settings

    def forward(
        self, input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """The loss of input (..., D) against target (...), through the head linear_weight (V, D)."""
        return linear_cross_entropy(input, linear_weight, target, linear_bias=linear_bias, **self.settings)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
