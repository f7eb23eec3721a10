"""One call of an implementation: what is timed, what is watched for memory, what is compared."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.case import Case
from harness.worker.inputs import IGNORE_INDEX, Tensors
from implementations.contract import LossFunction, Prepares, TellsFigures


@dataclass(frozen=True)
class Call:
    """A loss function bound to a case and its tensors, whose gradients land in `tensors`."""

    loss_function: LossFunction
    case: Case
    tensors: Tensors

    @property
    def differentiated(self) -> list[Tensor]:
        """input (N, D), linear_weight (V, D) and, where the case has one, linear_bias (V,)."""
        t = self.tensors
        return [t.input, t.linear_weight, *([t.linear_bias] if t.linear_bias is not None else [])]

    def forward(self) -> Tensor:
        """The loss, attached to autograd unless grad mode is off."""
        t = self.tensors
        return self.loss_function(t.input, t.linear_weight, t.target, **self._settings)

    def prepare(self, input: Tensor, target: Tensor) -> None:
        """Lets an implementation that keeps something from call to call compute it on other tokens of the same head."""
        if isinstance(self.loss_function, Prepares):
            self.loss_function.prepare(input, self.tensors.linear_weight, target, **self._settings)

    def figures(self) -> dict[str, float]:
        """What the implementation says of itself for this case; nothing from most. ValueError for what is no number."""
        if not isinstance(self.loss_function, TellsFigures):
            return {}
        t = self.tensors
        told = self.loss_function.figures(t.input, t.linear_weight, t.target, upstream=t.upstream, **self._settings)
        for name, value in told.items():
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"figures: {name} is {value!r}; it must be a finite number")
        return {name: float(value) for name, value in told.items()}

    @property
    def _settings(self) -> dict[str, Any]:
        return {
            "linear_bias": self.tensors.linear_bias,
            "label_smoothing": self.case.label_smoothing,
            "ignore_index": IGNORE_INDEX,
            "softcap": self.case.softcap,
            "reduction": self.case.reduction,
        }

    def checked_forward(self) -> Tensor:
        """`forward`, held to the contract: TypeError or ValueError in its words where it is broken."""
        loss: object = self.forward()
        if not isinstance(loss, Tensor):
            raise TypeError(f"the loss function returned {type(loss).__name__}, not a tensor")
        shape = (self.case.tokens,) if self.case.reduction == "none" else ()
        if loss.shape != shape:
            raise ValueError(
                f"the loss function returned shape {tuple(loss.shape)}; reduction {self.case.reduction} wants {shape}"
            )
        if not loss.requires_grad:
            raise ValueError("the loss carries no gradient: was it detached?")
        return loss

    def forward_no_grad(self) -> Tensor:
        with torch.no_grad():
            return self.forward()

    def backward(self, loss: Tensor) -> None:
        """Backward with the case's upstream gradient, which is not 1: scaling by it is part of every backward."""
        torch.autograd.backward(loss, self.tensors.upstream.to(loss.dtype))

    def clear_gradients(self) -> None:
        for tensor in self.differentiated:
            tensor.grad = None
