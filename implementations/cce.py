"""`cce`, `cce_no_filter`, `cce_no_sort`, `cce_exact`: Apple's Cut Cross-Entropy (arXiv:2411.09009).

Library: cut-cross-entropy 25.1.1 from PyPI, `linear_cross_entropy(..., impl="cce")`. The repository is ahead of
PyPI: its `impl="cce_exact"` filters nothing and accumulates in fp32. `cce_exact` is that, unavailable with 25.1.1.

The forward computes log-sum-exp and target logit without storing logits; the backward recomputes the logits in blocks
of 128 x 128 and adds each block's products to the gradients, under locks. With a filter it skips every block whose
logit gradients, before the upstream gradient, are all below `filter_eps`, and it orders the vocabulary by average
logit, so that negligible entries share blocks. `cce` is the library's default ("high": the dtype's eps / 32, 2^-12 in
bf16); `cce_no_filter` computes every block. Sorting has no switch of its own: `cce_no_sort` refuses, with this reason.

Supports: softcap, ignored rows, all reductions, bf16 and fp16, on CUDA alone (libdevice calls, which the interpreter
lacks). Refuses label smoothing and bias, which it does not have; fp32, which its backward asserts against; a mean of
which every row is ignored (it divides by zero in Python); and tensors that its 32-bit offsets do not reach.
The loss is fp32.
Differs from the contract, all of it arithmetic that the agreement phase judges:
- gradients are summed over blocks in the inputs' dtype, rounded at every block, in an order that varies between runs;
- the filter drops mass: small for each entry, not small in sum;
- the target logit is a sum of products that are rounded to the inputs' dtype first;
- with a softcap and V not a multiple of 128 each column of padding adds exp(-softcap) to the sum of exponentials:
  nothing at 30, a visible error at 2.

Option of `cce`: `filter_eps`, a positive number, "high" or "auto" (in 25.1.1 the same), or null for no filter.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import cast

from torch import Tensor

from implementations.contract import Case, DeviceType, Implementation, LossFunction, Reduction

REQUIRES = "cut-cross-entropy==25.1.1"
NO_SORT = "cut-cross-entropy 25.1.1 sorts the vocabulary whenever it filters: filter_eps switches both"


def supports(case: Case, device: DeviceType) -> str | None:
    refusals = [
        (device != "cuda", "CCE's kernels call libdevice, which Triton's interpreter lacks"),
        (case.label_smoothing > 0, "cut-cross-entropy 25.1.1 has no label smoothing"),
        (case.linear_bias, "cut-cross-entropy 25.1.1 has no bias"),
        (case.dtype == "float32", "cut-cross-entropy 25.1.1 has no backward in fp32"),
        (
            case.ignored_fraction >= 1 and case.reduction == "mean",
            "cut-cross-entropy 25.1.1 divides by zero in the mean when every row is ignored",
        ),
        (
            max(case.tokens, case.vocab_size) * case.hidden_size >= 2**31,
            "cut-cross-entropy 25.1.1 has 32-bit offsets, too few for 2^31 elements in one tensor",
        ),
    ]
    return next((reason for refused, reason in refusals if refused), None)


def refuses_everything(case: Case, device: DeviceType) -> str | None:  # noqa: ARG001 - no case is different
    return NO_SORT


def build(filter_eps: float | str | None = "high") -> LossFunction:
    """Raises ModuleNotFoundError without the library, ValueError if `filter_eps` is nothing that it knows."""
    is_number = isinstance(filter_eps, (int, float)) and not isinstance(filter_eps, bool) and filter_eps > 0
    if not is_number and filter_eps not in ("high", "auto", None):
        raise ValueError(f"filter_eps is a positive number, 'high', 'auto' or null, not {filter_eps!r}")
    from cut_cross_entropy import linear_cross_entropy

    threshold = float(cast(float, filter_eps)) if is_number else filter_eps  # the library matches float, not int
    return _loss_of(partial(linear_cross_entropy, filter_eps=threshold, impl="cce"))


def _loss_of(linear_cross_entropy: Callable[..., Tensor]) -> LossFunction:
    def loss(
        input: Tensor,  # (N, D)
        linear_weight: Tensor,  # (V, D)
        target: Tensor,  # (N,)
        *,
        linear_bias: Tensor | None,  # noqa: ARG001 - None, says `supports`
        label_smoothing: float,  # noqa: ARG001 - 0, says `supports`
        ignore_index: int,
        softcap: float | None,
        reduction: Reduction,
    ) -> Tensor:
        return linear_cross_entropy(
            input, linear_weight, target, ignore_index=ignore_index, softcap=softcap, reduction=reduction
        )

    return loss


def _build_no_filter() -> LossFunction:
    return build(None)


def _build_exact() -> LossFunction:
    from cut_cross_entropy import linear_cross_entropy

    if "accum_e_fp32" not in inspect.signature(linear_cross_entropy).parameters:
        raise ImportError('this cut-cross-entropy has no impl="cce_exact"; its repository has')
    return _loss_of(partial(linear_cross_entropy, impl="cce_exact"))


def _build_no_sort() -> LossFunction:
    raise ImportError(NO_SORT)  # what a library that lacks the function comes to: unavailable


REPOSITORY = "cut-cross-entropy @ git+https://github.com/apple/ml-cross-entropy.git"
_cce = partial(Implementation, uses_triton=True)

cce = _cce(build=build, supports=supports, requires=REQUIRES, skips_work=True)
cce_no_filter = _cce(build=_build_no_filter, supports=supports, requires=REQUIRES)
cce_exact = _cce(build=_build_exact, supports=supports, requires=REPOSITORY)
cce_no_sort = _cce(build=_build_no_sort, supports=refuses_everything, skips_work=True)  # no pip line provides it
