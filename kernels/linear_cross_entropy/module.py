"""The loss as a module: settings fixed once, and a vocabulary order kept and refreshed."""

from typing import Any

from torch import Tensor, nn

from kernels.linear_cross_entropy.api import linear_cross_entropy
from kernels.linear_cross_entropy.checks import check_settings, check_tail
from kernels.linear_cross_entropy.kept_order import INTERVAL, KeptOrder
from kernels.linear_cross_entropy.problem import FILTER_EPS
from kernels.linear_cross_entropy.tail.report import GradientStats


class LinearCrossEntropyLoss(nn.Module):
    """`linear_cross_entropy` with its settings fixed; the head's weight stays with the model.

    Equivalent to::

        loss = LinearCrossEntropyLoss(label_smoothing=0.1)
        loss(input, linear_weight, target) == linear_cross_entropy(
            input, linear_weight, target, label_smoothing=0.1, vocabulary_order=loss.vocabulary_order
        )

    Takes every keyword of the function but `linear_bias`, `vocabulary_order` and `token_centres`, and checks their
    values at once.

    For gradient="auto" and "corrected" it keeps the vocabulary's order: computed at the first forward that needs a
    gradient, again after 25 such forwards, 50 more and so on until it is every `order_interval` (weights move fast at
    the start of a training, then slowly), and part of the state dict. Under torch.compile the order that is there is
    used; `refresh_order` computes one.

    Args:
        order: "tree" keeps classes together whose logits move together; "auto" is the tree where that leaves enough
            fewer pairs to compute than the classes as they are (tokens by frequency can be as good); "average-logit"
            sorts by the mean logit, as the paper does; "none" leaves the classes as they are.
        order_interval: most forwards between two orders; 0 keeps the first.
        token_groups: groups of tokens with models of their own, up to one for 1024 tokens; their centres are kept with
            the order.
    """

    def __init__(
        self, *, order: str = "auto", order_interval: int = INTERVAL, token_groups: int = 1, **settings: Any
    ) -> None:
        super().__init__()
        known = self.setting_names()
        unknown = sorted(set(settings) - known)
        if unknown:
            raise TypeError(f"{unknown[0]}: no such setting; allowed are {', '.join(sorted(known))}")
        if settings.get("weight") is not None:
            raise NotImplementedError("weight: class weights are not supported; leave it None")
        gradient = settings.get("gradient", "exact")
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
        self._kept = KeptOrder(order, order_interval, token_groups)
        self._orders = gradient in ("auto", "corrected") and not settings.get("fused", False)

    @staticmethod
    def setting_names() -> frozenset[str]:
        """What may be given to the constructor: the function's keywords but those of a call, and its own."""
        of_a_call = {"linear_bias", "vocabulary_order", "token_centres"}
        own = LinearCrossEntropyLoss.__init__.__kwdefaults__ or {}
        return frozenset({*(linear_cross_entropy.__kwdefaults__ or {}), *own} - of_a_call)

    @property
    def vocabulary_order(self) -> Tensor | None:
        """(V,) int64, the order that is kept; None before the first."""
        return self._kept.order

    def forward(
        self, input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None = None
    ) -> Tensor | tuple[Tensor | GradientStats, ...]:
        """The loss of input (..., D) against target (...), through the head linear_weight (V, D)."""
        order, centres = self.layout(input, linear_weight, target)
        return linear_cross_entropy(
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            vocabulary_order=order,
            token_centres=centres,
            **self.settings,
        )

    def layout(
        self, input: Tensor, linear_weight: Tensor, target: Tensor | None = None, **settings: Any
    ) -> tuple[Tensor | None, Tensor | None]:
        """Vocabulary order and token centres for this forward, None where it takes none; counts as a forward.

        settings: of `linear_cross_entropy`, where they are not the module's.
        """
        if not self._orders:
            return None, None
        return self._kept.of(input, linear_weight, target, {**self.settings, **settings})

    def refresh_order(self, input: Tensor, linear_weight: Tensor, target: Tensor | None = None) -> None:
        """Computes the vocabulary order from input (..., D) and linear_weight (V, D); target (...) to see its worth."""
        self._kept.refresh(input, linear_weight, target, self.settings)

    def get_extra_state(self) -> dict[str, Any]:
        """The order and its age, for the state dict."""
        return self._kept.state()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """What get_extra_state gave."""
        self._kept.load(state)

    def extra_repr(self) -> str:
        parts = [f"{name}={value!r}" for name, value in self.settings.items()]
        return ", ".join(
            [
                *parts,
                f"order={self._kept.kind!r}",
                f"order_interval={self._kept.interval}",
                f"token_groups={self._kept.token_groups}",
            ]
        )
