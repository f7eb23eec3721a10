"""`liger`, `liger_fp32_accum`, `liger_cutedsl`: Liger Kernel's fused linear cross-entropy.

Library: liger-kernel 0.8.5, `LigerFusedLinearCrossEntropyFunction`. The first two are its Triton implementation, taken
from its own module: the names in `liger_kernel.ops` and `liger_kernel.transformers` are exchanged for other kernels by
the variable LIGER_KERNEL_IMPL. `liger_cutedsl` sets it to "cutedsl", as Liger's documentation says, for the kernels in
CUTLASS's Python DSL (Hopper and newer; its own fused loss for SM90), which need nvidia-cutlass-dsl.

The forward takes the tokens in chunks whose logits are about as large as `input`, turns the logits into their gradient
in place and multiplies it out; the backward only scales by the upstream gradient. So the forward carries nearly all the
time, the memory and the gradients. Reduction none is the exception: its backward computes the chunks a second time.
`liger` sums the chunks' weight gradients in the inputs' dtype, `liger_fp32_accum` in fp32 (4·V·D bytes more at 16 bit).

Supports: label smoothing, softcap, bias, ignored rows, all reductions, every dtype. The loss is always fp32.
Differs from the contract:
- the logits are rounded to the inputs' dtype before the softcap, the logit gradients before the products;
- with every row ignored the mean is 0, not nan (the gradients are zero, as they should be);
- the upstream gradient scales the stored gradients in place, so a second backward through one graph is wrong;
- `linear_weight` and `linear_bias` get no gradient, and no error, when `input` requires none.

On a CPU the kernel runs in Triton's interpreter (TRITON_INTERPRET=1 before anything imports triton). There softcap is
refused, for its code (`.to` on a float argument, libdevice's tanh) fails, and bf16 gradients carry about twice their
rounding error, for the interpreter cuts bf16 off instead of rounding it.
"""

from __future__ import annotations

import os
from functools import partial
from typing import cast

import torch
from torch import Tensor

from implementations.contract import Case, DeviceType, Implementation, LossFunction, Reduction

REQUIRES = "liger-kernel==0.8.5"


def supports(case: Case, device: DeviceType) -> str | None:
    if device == "cpu" and case.softcap is not None:
        return "Liger 0.8.5's softcap does not run in Triton's interpreter"
    return None


def supports_cutedsl(case: Case, device: DeviceType) -> str | None:  # noqa: ARG001 - the same for every case
    return None if device == "cuda" else "Liger's CuTe DSL kernels need a GPU"


def in_forward(case: Case) -> bool:
    """For reduction none the backward computes the chunks a second time."""
    return case.reduction != "none"


def build(accum_dtype: torch.dtype | None) -> LossFunction:
    """`accum_dtype` is that of the weight gradients' sum over chunks, None the inputs' own.

    Raises ModuleNotFoundError without Liger.
    """
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    return _loss_of(LigerFusedLinearCrossEntropyFunction, accum_dtype)


def _loss_of(function: type[torch.autograd.Function], accum_dtype: torch.dtype | None) -> LossFunction:
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
        # Liger asks `input.requires_grad` alone, so under no_grad it would compute gradients that nobody can take.
        # Hidden states of a model run under no_grad do not require any; a leaf of this harness does.
        hidden = input if torch.is_grad_enabled() else input.detach()
        outputs = function.apply(  # type: ignore[no-untyped-call]
            hidden,
            linear_weight,
            target,
            linear_bias,
            None,  # ce_weight
            ignore_index,
            0.0,  # lse_square_scale
            label_smoothing,
            reduction,
            softcap,
            False,  # return_z_loss
            accum_dtype,
        )
        return cast(Tensor, outputs[0])  # the others are z-loss, accuracy and predictions, all None

    return loss


def _build_cutedsl() -> LossFunction:
    import cutlass.cute  # noqa: F401 - missing, it makes the row unavailable here and not in the midst of a call

    os.environ["LIGER_KERNEL_IMPL"] = "cutedsl"  # read once, when liger_kernel.ops is imported
    from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction

    return _loss_of(LigerFusedLinearCrossEntropyFunction, None)


def _build_plain() -> LossFunction:
    return build(None)


def _build_fp32_accum() -> LossFunction:
    return build(torch.float32)


_liger = partial(
    Implementation,
    supports=supports,
    requires=REQUIRES,
    grads_in_forward=in_forward,
    uses_triton=True,
    autotunes=False,
)

liger_cutedsl = Implementation(
    build=_build_cutedsl,
    supports=supports_cutedsl,
    requires="liger-kernel[cutedsl]==0.8.5",
    grads_in_forward=in_forward,
)
liger = _liger(build=_build_plain)
liger_fp32_accum = _liger(build=_build_fp32_accum)
