"""torch.library operators that plain eager code calls around the dispatcher.

torch.compile, fake tensors, dispatch modes, functorch and tracers see an operator: a schema, a fake implementation, an
autograd formula. Its price is Python that torch runs at every call, which on a slow host is 0.2 to 0.4 ms of a step
(docs/kernel-notes.md) and buys plain eager code nothing. So there an autograd.Function holds the same implementation
and the same formula.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Implementation = Callable[..., tuple[Tensor, ...]]
_PLAIN = (Tensor, torch.nn.Parameter)


class Operator:
    """A functional operator: no argument is mutated, every output is a tensor.

    Args:
        implementation: takes the schema's arguments in its order, first a tensor, none by name; not under autocast.
        name: "namespace::name" in torch.ops.
        schema: as for torch.library.custom_op.
        tags: of the operator.
    """

    def __init__(
        self,
        implementation: Implementation,
        name: str,
        schema: str,
        *,
        tags: Sequence[torch.Tag] = (),
    ) -> None:
        self._name, self._implementation = name, without_autocast(implementation)
        self._function: type[torch.autograd.Function] | None = None
        self.registered = torch.library.custom_op(name, self._implementation, mutates_args=(), schema=schema, tags=tags)

    def register_fake(self, fake: Callable[..., tuple[Tensor, ...]]) -> None:
        """Shapes and dtypes of the outputs, as torch.library's."""
        self.registered.register_fake(fake)

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
        """The autograd formula, as torch.library's."""
        self.registered.register_autograd(backward, setup_context=setup_context)
        implementation = self._implementation

        def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
            output = implementation(*inputs)
            setup_context(ctx, inputs, output)
            return output

        # An operator's double backward is an error by itself; a Function's would differentiate the implementation.
        methods = {"forward": staticmethod(forward), "backward": staticmethod(once_differentiable(backward))}
        name = self._name.replace("::", "_")  # a profile shows it
        self._function = type(name, (torch.autograd.Function,), methods)

    def __call__(self, *inputs: Any) -> tuple[Tensor, ...]:
        if torch.compiler.is_compiling() or not is_plain(inputs):  # compiling first: what follows is not to be traced
            return self.registered(*inputs)
        if not torch.is_grad_enabled() or not any(isinstance(t, Tensor) and t.requires_grad for t in inputs):
            return self._implementation(*inputs)
        differentiable = self._function.apply if self._function else self.registered  # whose backward is an error
        return differentiable(*inputs)


def operator(name: str, schema: str, *, tags: Sequence[torch.Tag] = ()) -> Callable[[Implementation], Operator]:
    """Decorator: an Operator of the function it stands above."""
    return lambda implementation: Operator(implementation, name, schema, tags=tags)


def without_autocast(implementation: Implementation) -> Implementation:
    """`implementation`, whose products have the dtypes it asks for: autocast has cast the operands before."""

    @functools.wraps(implementation)
    def call(first: Tensor, *others: Any) -> tuple[Tensor, ...]:
        kind = first.device.type
        if not torch.is_autocast_enabled(kind):  # asked first: the context costs more than the question
            return implementation(first, *others)
        with torch.autocast(kind, enabled=False):
            return implementation(first, *others)

    return call


def is_plain(inputs: Sequence[Any]) -> bool:
    """Whether nothing but autograd watches what happens to `inputs`, which are ordinary tensors."""
    return (
        not torch._C._len_torch_dispatch_stack()
        and not torch._C._are_functorch_transforms_active()
        and not torch.jit.is_tracing()
        and all(type(t) in _PLAIN for t in inputs if isinstance(t, Tensor))
    )
