"""What an implementation is, to the harness and to whoever writes one.

The operation every adapter offers, in two lines of torch (`input` (N, D), `linear_weight` (V, D), `target` (N,)):

    logits = softcap * tanh((input @ linear_weight.T + linear_bias) / softcap)
    F.cross_entropy(logits.float(), target, label_smoothing=..., ignore_index=..., reduction=...)

The name of the operation is its mathematics: an adapter may be faster, smaller or rounder than these lines, never
different. What it cannot do it refuses in `supports`, with the reason; it never falls back silently to something else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

Reduction = Literal["mean", "sum", "none"]
DeviceType = Literal["cuda", "cpu"]


class LossFunction(Protocol):
    """The callable that is measured. Shapes: N tokens, D hidden size, V vocabulary size.

    Returns the loss, a scalar for `mean` and `sum` and (N,) for `none`, attached to autograd: calling `.backward` on it
    leaves the gradients in `input.grad` (N, D), `linear_weight.grad` (V, D) and `linear_bias.grad` (V,).
    """

    def __call__(
        self,
        input: Tensor,  # (N, D)
        linear_weight: Tensor,  # (V, D)
        target: Tensor,  # (N,) int64, `ignore_index` where a row counts for nothing
        *,
        linear_bias: Tensor | None,  # (V,)
        label_smoothing: float,
        ignore_index: int,
        softcap: float | None,
        reduction: Reduction,
    ) -> Tensor: ...


@runtime_checkable
class Prepares(Protocol):
    """A loss function that keeps something from call to call which it fits to a batch, such as an order of the classes.

    `prepare` is called once, before any other call, with another batch over the same linear_weight: nothing that is
    kept may be fitted to the tokens that are timed again and again (where a file has no others, to those as they were
    before the first call). In a training it is not called. What it costs is told as `amortised_ms` (below).
    """

    def prepare(
        self,
        input: Tensor,  # (N, D), not that of the calls
        linear_weight: Tensor,  # (V, D)
        target: Tensor,  # (N,), not that of the calls
        *,
        linear_bias: Tensor | None,  # (V,)
        label_smoothing: float,
        ignore_index: int,
        softcap: float | None,
        reduction: Reduction,
    ) -> None: ...


@runtime_checkable
class TellsFigures(Protocol):
    """A loss function that can say how it computes a case: numbers that the report shows and nobody judges.

    `figures` takes what the loss function takes and the upstream gradient of the loss, and returns finite numbers by
    name: shares, bounds that it states, milliseconds of what it does rarely. It may compute the case, and leave
    gradients behind.

    Two names mean something to the harness. `amortised_ms` is a call's share of what is done once in `amortised_calls`
    calls and so is in no sample: reports add it to forward + backward, and to every ratio.
    """

    def figures(
        self,
        input: Tensor,  # (N, D)
        linear_weight: Tensor,  # (V, D)
        target: Tensor,  # (N,)
        *,
        upstream: Tensor,  # () or, for reduction none, (N,)
        linear_bias: Tensor | None,  # (V,)
        label_smoothing: float,
        ignore_index: int,
        softcap: float | None,
        reduction: Reduction,
    ) -> dict[str, float]: ...


class Case(Protocol):
    """What `supports` may ask about a case. `harness.case.Case` is one; all sizes are counts, not bytes."""

    @property
    def tokens(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def label_smoothing(self) -> float: ...
    @property
    def softcap(self) -> float | None: ...
    @property
    def dtype(self) -> str: ...
    @property
    def reduction(self) -> Reduction: ...
    @property
    def ignored_fraction(self) -> float: ...
    @property
    def linear_bias(self) -> bool: ...


def supports_everything(case: Case, device: DeviceType) -> str | None:  # noqa: ARG001  (asked, and never minds)
    """The default `supports`: no case is refused."""
    return None


@dataclass(frozen=True)
class Implementation:
    """One row of every table.

    build: called once per worker with the suite's options; imports the library and returns the loss function. A wrong
        option is a TypeError or ValueError that names it.
    supports: (case, device) -> None if the case can be computed as the contract says, else the reason why not.
    requires: the pip requirement that provides the library, such as "liger-kernel==0.8.5"; None if torch is enough.
    grads_in_forward: whether the forward of a case already computes the gradients, so that its split columns do not
        compare with others'; a function of the case where it depends on it.
    uses_triton: on a CPU its kernels run in the Triton interpreter, whose times mean nothing and are not reported.
    skips_work: it may leave out part of the arithmetic (a filter), so a time below that of its products is possible.
    deterministic: it claims that two calls on the same tensors give the same bits; the harness holds it to that.
    autotunes: its first calls may time kernels in order to choose one, or take memory for whole logits, so that the GPU
        must be theirs alone. Rows for which neither is true compile beside each other.
    """

    build: Callable[..., LossFunction]
    supports: Callable[[Case, DeviceType], str | None] = supports_everything
    requires: str | None = None
    grads_in_forward: bool | Callable[[Case], bool] = False
    uses_triton: bool = False
    skips_work: bool = False
    autotunes: bool = True
    deterministic: bool | Callable[[Case], bool] = False


def as_implementation(candidate: Any) -> Implementation:
    """`candidate` itself if it is an Implementation; a bare loss function becomes one that supports everything."""
    if isinstance(candidate, Implementation):
        return candidate
    if callable(candidate):

        def build() -> LossFunction:  # a plain function has no options
            return cast("LossFunction", candidate)

        return Implementation(build=build)
    raise TypeError(
        f"an implementation is an Implementation or a callable with its signature, not {type(candidate).__name__}"
    )
