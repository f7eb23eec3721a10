"""Implementations that misbehave in one way each, for `path: tests.harness.planted:NAME`."""

from __future__ import annotations

import os
import time
from typing import Any

import torch

from implementations.baseline import eager_loss
from implementations.contract import Implementation


def right(*arguments: Any, **settings: Any) -> torch.Tensor:
    """Does what the contract says."""
    return eager_loss(*arguments, **settings)


def slow(*arguments: Any, **settings: Any) -> torch.Tensor:
    """Right, and long enough under way to be killed there."""
    time.sleep(0.1)
    return eager_loss(*arguments, **settings)


_called: list[bool] = []


def slow_at_first(*arguments: Any, **settings: Any) -> torch.Tensor:
    """Right, and its first call takes long, as if it compiled."""
    if not _called:
        time.sleep(1.5)
    _called.append(True)
    return eager_loss(*arguments, **settings)


def raises(*arguments: Any, **settings: Any) -> torch.Tensor:
    """A bug in Python."""
    raise ZeroDivisionError("planted")


def dies(*arguments: Any, **settings: Any) -> torch.Tensor:
    """A segmentation fault, as far as the parent can tell."""
    os.kill(os.getpid(), 11)
    raise AssertionError("unreachable")


def dies_later(*arguments: Any, **settings: Any) -> torch.Tensor:
    """Right for longer than settling takes; its 60th call, in the midst of a turn, is its end."""
    _called.append(True)
    return dies() if len(_called) == 60 else eager_loss(*arguments, **settings)


def dies_and_leaves_a_child(*arguments: Any, **settings: Any) -> torch.Tensor:
    """Its child keeps the pipe to the parent open."""
    if os.fork() == 0:
        time.sleep(600)
        os._exit(0)
    return dies()


def cheats_without_grad(*arguments: Any, **settings: Any) -> torch.Tensor:
    """Does the work only when somebody will look at the gradients."""
    return eager_loss(*arguments, **settings) if torch.is_grad_enabled() else torch.zeros(())


def detached(*arguments: Any, **settings: Any) -> torch.Tensor:
    """A loss that nothing can be trained with."""
    return eager_loss(*arguments, **settings).detach()


def no_tensor(*arguments: Any, **settings: Any) -> None:
    """Forgot to return."""


def wrong_shape(*arguments: Any, **settings: Any) -> torch.Tensor:
    """A loss per token where the mean was asked for."""
    return eager_loss(*arguments, **{**settings, "reduction": "none"})


def with_options(scale: float = 1.0) -> Any:
    """Builds a loss that refuses some options."""
    if scale <= 0:
        raise ValueError(f"scale is positive, not {scale}")
    return right


has_options = Implementation(build=with_options)


class Talkative:
    """Right, and has something to say of itself."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, *arguments: Any, **settings: Any) -> torch.Tensor:
        return eager_loss(*arguments, **settings)

    def figures(self, *arguments: Any, upstream: torch.Tensor, **settings: Any) -> dict[str, float]:
        torch.autograd.backward(
            self(*arguments, **settings), upstream
        )  # gradients that nobody may take for the measured
        return {"share": self.share, "tokens": len(arguments[0])}


talkative = Implementation(build=lambda: Talkative(0.25))
talks_nonsense = Implementation(build=lambda: Talkative(float("nan")))


def hangs(*arguments: Any, **settings: Any) -> torch.Tensor:
    """Never answers, and has a child that would outlive it."""
    if os.fork() == 0:
        time.sleep(600)
        os._exit(0)
    time.sleep(600)
    raise AssertionError("unreachable")


def eats_memory(input: torch.Tensor, *arguments: Any, **settings: Any) -> torch.Tensor:
    """Wants 8 TiB."""
    return torch.empty(1 << 41, device=input.device).sum()


def wrong(*arguments: Any, **settings: Any) -> torch.Tensor:
    """The right loss with gradients 10 % too small."""
    loss = eager_loss(*arguments, **settings)
    return 0.9 * loss + 0.1 * loss.detach()


def _missing() -> Any:
    import a_library_nobody_has  # type: ignore[import-not-found]

    return a_library_nobody_has.loss


missing_library = Implementation(build=_missing, requires="a-library-nobody-has==1.0")
refuses = Implementation(build=lambda: right, supports=lambda case, device: "does not do that")
no_implementation = 42
