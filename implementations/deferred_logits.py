"""Logits that a model's own forward carries from its head to its loss without ever computing them.

Arithmetic on them is written down and followed as far as it is a softcap; everything else is refused, so that a model
which does more to its logits cannot train on another loss than its own. Used by implementations/huggingface.py.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn


class DeferredLogits:
    """Logits that are not computed: what a head would multiply, and what the model did to the result since.

    Not a dataclass and not a tensor, so that wrappers which look through a model's outputs for tensors let it pass.
    """

    def __init__(
        self,
        hidden: Tensor,  # (..., D)
        weight: Tensor,  # (V, D)
        bias: Tensor | None,  # (V,)
        steps: tuple[tuple[str, float], ...] = (),
    ) -> None:
        self.hidden, self.weight, self.bias, self.steps = hidden, weight, bias, steps
        self.device = hidden.device

    @property
    def softcap(self) -> float | None:
        """The cap c when the model computed c * tanh(logits / c), None when it left its logits alone."""
        match self.steps:
            case ():
                return None
            case (("/", cap), ("tanh", _), ("*", factor)) if cap == factor:
                return cap
        done = " ".join(name if name == "tanh" else f"{name} {constant}" for name, constant in self.steps)
        raise NotImplementedError(
            f"the model computes its logits as: head, {done}; linear_cross_entropy knows softcap * tanh(head / softcap)"
        )

    def _then(self, name: str, constant: Any = 1.0) -> DeferredLogits:
        if not isinstance(constant, int | float):
            self._refuse(f"{name} by a {type(constant).__name__}")
        if name in "/*" and constant == 1:
            return self
        return DeferredLogits(self.hidden, self.weight, self.bias, (*self.steps, (name, float(constant))))

    def __truediv__(self, constant: Any) -> DeferredLogits:
        return self._then("/", constant)

    def __mul__(self, constant: Any) -> DeferredLogits:
        return self._then("*", constant)

    __rmul__ = __mul__

    def tanh(self) -> DeferredLogits:
        return self._then("tanh")

    def float(self) -> DeferredLogits:  # the loss is computed in fp32 anyway
        return self

    contiguous = float

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> DeferredLogits:
        if function in (torch.tanh, nn.functional.tanh) and isinstance(args[0], cls):
            return args[0].tanh()
        return cls._refuse(f"torch.{getattr(function, '__name__', function)}")

    @staticmethod
    def _refuse(operation: str) -> NoReturn:
        raise NotImplementedError(
            f"the model applies {operation} to its logits, which do not exist when the loss is computed without them"
        )

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        self._refuse(f".{name}")

    def _operator(self, _: Any) -> NoReturn:
        self._refuse("an index, +, - or @")

    __getitem__ = __add__ = __radd__ = __sub__ = __rsub__ = __matmul__ = _operator
