"""The public function: checks, dtypes, shapes and reduction. The mathematics is in the operators' kernels."""

import torch
from torch import Tensor

from kernels.linear_cross_entropy import operators
from kernels.linear_cross_entropy.checks import (
    check_centres,
    check_operands,
    check_order,
    check_settings,
    check_tail,
    check_targets_in_range,
)
from kernels.linear_cross_entropy.config import tail_tile_classes
from kernels.linear_cross_entropy.problem import FILTER_EPS
from kernels.linear_cross_entropy.tail import operators as tail_operators
from kernels.linear_cross_entropy.tail.method import default_tolerance
from kernels.linear_cross_entropy.tail.report import GradientStats


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    return_lse: bool = False,
    return_nll: bool = False,
    return_stats: bool = False,
    gradient: str = "exact",
    gradient_tolerance: float | None = None,
    vocabulary_order: Tensor | None = None,
    token_centres: Tensor | None = None,
    model_tail: bool = True,
    first_order: bool = True,
    filter_eps: float | None = FILTER_EPS,
    sort_vocabulary: bool = True,
    fused: bool = False,
    pack_tokens: bool = True,
    check_targets: bool = False,
) -> Tensor | tuple[Tensor | GradientStats, ...]:
    r"""Label-smoothed cross-entropy of a linear head, without its logits ever in memory.

    Equivalent to, and with the argument names of `torch.nn.functional.linear_cross_entropy`::

        logits = F.linear(input, linear_weight, linear_bias).float()
        logits = softcap * torch.tanh(logits / softcap)                      # if softcap is given
        loss = F.cross_entropy(logits.flatten(0, -2), target.flatten(), label_smoothing=label_smoothing)

    per token, for the smoothed target (1 - beta) * onehot(y) + beta / V (Eq. 15 of the paper)::

        loss = logsumexp(z) - (1 - beta) * z[y] - (beta / V) * sum(z)

    Convention: as in torch, beta / V goes to every class, the target's included. A text that puts
    eps / (V - 1) on the wrong classes and 1 - eps on the right one means label_smoothing = eps * V / (V - 1).

    Deviations from torch: the loss is fp32 whatever the input's dtype, and a target out of range is no
    error unless `check_targets`: that row's loss is nan and it has no gradient (nor has its lse, which is finite).
    There is no double backward.

    Args:
        input: (..., D) activations; bf16, fp16 or fp32. Under autocast the operands are cast as F.linear's.
        linear_weight: (V, D). Rows that are not of unit stride are copied.
        target: (...) class indices, integers.
        linear_bias: (V,).
        weight: class weights are not supported: must be None.
        reduction: "mean" over the rows that are not ignored (nan when there are none), "sum", or "none".
        ignore_index: rows with this target have no loss and no gradient. None means -100.
        label_smoothing: beta, in [0, 1].
        softcap: logits become softcap * tanh(logits / softcap); 30 in Gemma-2. None for none.
        return_lse: also return logsumexp(z), (...) fp32, 0 in ignored rows; differentiable, so that a
            z-loss needs no second pass.
        return_nll: also return the unsmoothed negative log-likelihood, (...) fp32, 0 in ignored rows;
            detached.
        return_stats: also return a GradientStats, which the backward fills in: the path taken, the share of (token,
            vocabulary tile) pairs computed, error bounds. Costs time in the backward; not under torch.compile.
        gradient: "exact" computes every tile of the logit gradient, deterministically. "auto" computes the
            pairs of token and vocabulary tile that matter and models the others (docs/tail-correction.md), or
            is "exact" where too many matter, where N * V * D is too small for it to pay, and for anything but bf16
            and fp16 on a GPU. Its sums over tiles are atomic: two runs differ in the last bit of dE. "corrected" is
            the same without the choice.
            "filtered" is the paper's: tiles in which no |dz| / |upstream| exceeds `filter_eps` are skipped. It
            is faster and loses what it skips, smoothing with the rest: kept alone it would be worse.
        gradient_tolerance: "auto" and "corrected" only: the relative error of dE and of dC that modelling may add,
            beside the rounding of their dtype. None means three eighths of a unit in the last place:
            0.003 in bf16, 0.0004 in fp16, what torch's own roundings add up to. Smaller is slower.
        vocabulary_order: (V,) int64, likewise: a permutation of the classes in which those that behave alike are
            neighbours (vocabulary_order.py). Any is correct; a good one leaves fewer pairs to compute. The module
            keeps one.
        token_centres: (K, D) fp32, likewise: centres of groups of tokens, which get models of their own. Better where
            tokens differ, as on a trained model's head; at least 1024 tokens a group. Not used under a softcap.
        model_tail, first_order: "auto" and "corrected" only: False leaves the tail, or its first-order terms, out
            (for measuring what each is worth).
        filter_eps: the filter's threshold; None computes every tile the filtered way.
        sort_vocabulary: "filtered" only: group classes by their average logit (within each slice of the vocabulary
            that the backward works on), so that more tiles are empty.
        fused: compute the gradients in the forward, so that the backward only scales them. They are rounded before the
            upstream gradient is known: with fp16 and a loss scale, whose purpose that defeats, leave it off. A second
            backward is an error; under torch.compile, which copies what is scaled in place, it is not noticed, and the
            peak has the gradients twice. What one scalar does not determine (reduction="none", a differentiable
            lse) is computed in the backward all the same.
        pack_tokens: leave ignored rows out of every product, for one host synchronisation, in the forward, and a copy
            of the rows that are left.
            False never synchronises; a CUDA graph capture implies it.
        check_targets: raise a ValueError for targets out of range; one host synchronisation, and so a graph break.

    Returns:
        The loss, fp32: a scalar, or (...) for reduction="none". With return_lse, return_nll or return_stats a tuple,
        in the order (loss, lse, nll, stats), without what was not asked for.

    Raises:
        ValueError, TypeError: arguments that do not fit together; the message names the argument.
        NotImplementedError: class weights, soft targets.
    """
    input, linear_weight, linear_bias = _autocast(input, linear_weight, linear_bias)
    check_operands(input, linear_weight, target, linear_bias, weight)
    check_settings(label_smoothing, reduction, softcap, gradient, filter_eps, ignore_index)
    check_tail(gradient, gradient_tolerance, return_stats)
    check_order(vocabulary_order, linear_weight)
    check_centres(token_centres, linear_weight)
    ignore_index = -100 if ignore_index is None else ignore_index
    if check_targets:
        check_targets_in_range(target, linear_weight.shape[0], ignore_index)

    rows = target.shape
    operands = (
        _unit_stride(input.reshape(-1, input.shape[-1])),
        _unit_stride(linear_weight),
        None if linear_bias is None else linear_bias.contiguous(),
        target.reshape(-1).to(torch.int64).contiguous(),
    )
    softcap = softcap or 0.0
    needs = [t is not None and t.requires_grad for t in operands[:3]]
    wants_gradient = torch.is_grad_enabled() and any(needs)
    tile_classes = 0
    if gradient in ("auto", "corrected"):
        tile_classes = tail_tile_classes(operands[0], operands[1], choose=gradient == "auto")
    models = tile_classes > 0 and wants_gradient and not fused
    in_forward = fused and wants_gradient and reduction != "none" and not return_lse
    stats = GradientStats.empty() if return_stats else None
    if stats is not None and not models:
        stats.report[0] = 1.0  # whatever the backward does, it is not modelling
    filtered = gradient == "filtered"
    settings = (
        float(label_smoothing), ignore_index, softcap, pack_tokens, filtered, filter_eps or 0.0,
        sort_vocabulary and filter_eps is not None and filtered,
    )  # fmt: skip
    if models:
        if gradient_tolerance is None:
            gradient_tolerance = default_tolerance(input.dtype)
        loss, lse, nll, *_ = tail_operators.tail_forward(
            *operands, vocabulary_order, token_centres if softcap == 0 else None,
            None if stats is None else stats.report,
            float(label_smoothing), ignore_index, softcap, pack_tokens, tile_classes,
            gradient_tolerance, gradient == "auto", model_tail, first_order, return_stats,
        )  # fmt: skip
    elif in_forward:  # a scalar already
        loss, nll, *_ = operators.fused(*operands, *settings, reduction == "mean", *needs)
    else:
        loss, lse, nll, *_ = operators.forward(*operands, *settings)
    if reduction == "none":
        loss = loss.view(rows)
    elif not in_forward:
        loss = loss.sum()
        if reduction == "mean":
            loss = loss / (operands[3] != ignore_index).sum()
    extras = ([lse.view(rows)] if return_lse else []) + ([nll.detach().view(rows)] if return_nll else [])
    extras += [] if stats is None else [stats]
    return (loss, *extras) if extras else loss


def _autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """What autocast does to the operands of F.linear; the identity outside of it."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    narrower = (torch.float32, torch.float16, torch.bfloat16)  # autocast leaves fp64 and integers as they are
    return [t.to(dtype) if t is not None and t.dtype in narrower else t for t in tensors]


def _unit_stride(matrix: Tensor) -> Tensor:
    """`matrix` itself when its rows are contiguous (any row stride will do), else a contiguous copy."""
    return matrix if matrix.stride(-1) == 1 and matrix.stride(0) >= matrix.shape[1] else matrix.contiguous()
