"""The tensors a case computes on: drawn from its seed, or read from a file. docs/inputs.md describes every kind.

Values are drawn in fp32 and rounded once to the case's dtype; oracle and implementations then see the same rounded
values. The same case gives the same bits in every process on one machine; another GPU model may draw others.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from harness.case import Case
from harness.worker import generators
from harness.worker.input_file import read_input_file
from harness.worker.products import without_tf32

IGNORE_INDEX = -100
_SCALAR_UPSTREAM = 0.7  # not 1: who forgets to multiply by it is found out
_BIAS_STD = 0.1
_ANOTHER_BATCH = 0x5EED0F0742  # added to the seed for tokens that nobody times; beyond the seeds that suites use
_BLOCK = 1 << 22  # 64-bit words hashed at once: 32 MiB, with a few temporaries of that size


@dataclass(frozen=True)
class Tensors:
    """Contiguous leaves on one device, none of which requires a gradient."""

    input: Tensor  # (N, D), in the case's dtype
    linear_weight: Tensor  # (V, D), in the case's dtype
    linear_bias: Tensor | None  # (V,), in the case's dtype
    target: Tensor  # (N,) int64, IGNORE_INDEX where a row counts for nothing
    upstream: Tensor  # gradient of the loss, fp32: a scalar, or (N,) for reduction none


def draw(case: Case, device: torch.device) -> Tensors:
    """The tensors of `case`. Raises ValueError if its file does not fit it, FileNotFoundError if there is none."""
    generator = torch.Generator(device).manual_seed(case.seed)
    with torch.no_grad(), without_tf32():
        if case.inputs.path is not None:
            given = read_input_file(case, IGNORE_INDEX, device)
            input, linear_weight, linear_bias, target = given
        else:
            input, linear_weight, linear_bias, target = _generated(case, generator, generator)
        _ignore(case, target, generator)
        if case.reduction == "none":
            upstream = torch.rand(case.tokens, generator=generator, device=device).add_(0.5)  # [0.5, 1.5)
        else:
            upstream = torch.tensor(_SCALAR_UPSTREAM, device=device)
    return Tensors(input.contiguous(), linear_weight.contiguous(), linear_bias, target, upstream)


def draw_another_batch(case: Case, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """input (N, D) and target (N,) of other tokens over the case's own head; None where a file has no others.

    The head is drawn once more and dropped, so that its tokens follow the same distribution: V*D*itemsize for a moment.
    """
    if case.inputs.path is not None:
        return None
    generator = torch.Generator(device).manual_seed(case.seed)
    of_tokens = torch.Generator(device).manual_seed((case.seed + _ANOTHER_BATCH) % 2**63)
    with torch.no_grad(), without_tf32():
        input, _, _, target = _generated(case, generator, of_tokens)
        _ignore(case, target, of_tokens)
    return input.contiguous(), target


def _generated(
    case: Case, generator: torch.Generator, of_tokens: torch.Generator
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """input, linear_weight, linear_bias and target of a synthetic kind; what belongs to tokens from `of_tokens`."""
    linear_bias = None
    if case.linear_bias:
        drawn = torch.randn(case.vocab_size, generator=generator, device=generator.device)
        linear_bias = drawn.mul_(_BIAS_STD).to(getattr(torch, case.dtype))
    input, linear_weight, target = generators.GENERATORS[case.inputs.kind](case, linear_bias, generator, of_tokens)
    return input, linear_weight, linear_bias, target


def _ignore(case: Case, target: Tensor, generator: torch.Generator) -> None:
    """Sets the case's share of target (N,) to IGNORE_INDEX."""
    order = torch.randperm(case.tokens, generator=generator, device=target.device)
    target[order[: round(case.ignored_fraction * case.tokens)]] = IGNORE_INDEX


def checksum(tensors: Tensors) -> str:
    """A digest of every bit of `tensors`: equal in every process, different if any single element differs.

    Each tensor's 64-bit words are summed, each multiplied by an odd number that depends on its position, modulo 2**64:
    an odd factor maps no difference to zero, and integer sums do not depend on their order. Only the sums leave the
    device.
    """
    described = "".join(f"{name} {digest}\n" for name, digest in digests(tensors).items())
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def digests(tensors: Tensors) -> dict[str, str]:
    """The digest of each tensor, by its name: which of them has changed."""
    present = {field.name: getattr(tensors, field.name) for field in fields(tensors)}
    return {name: bit_digest(tensor.detach()) for name, tensor in present.items() if tensor is not None}


def bit_digest(tensor: Tensor) -> str:
    """dtype, shape and a sum over every bit of `tensor`: different if any single element differs."""
    return f"{tensor.dtype} {tuple(tensor.shape)} {_weighted_sum(tensor)}"


def _weighted_sum(tensor: Tensor) -> int:
    """The position-weighted sum of the tensor's bits, modulo 2**64; int64 arithmetic wraps."""
    octets = tensor.contiguous().reshape(-1).view(torch.uint8)
    if octets.storage_offset() % 8:
        octets = octets.clone()  # a view of words must start at one
    whole = octets.numel() // 8 * 8
    tail = torch.zeros(8, dtype=torch.uint8, device=octets.device)
    tail[: octets.numel() - whole] = octets[whole:]
    words = octets[:whole].view(torch.int64)
    weights = _odd_weights(min(_BLOCK, words.numel() + 1), tensor.device)
    total = (tail.view(torch.int64) * weights[:1]).sum()
    for block, start in enumerate(range(0, words.numel(), _BLOCK), start=1):
        part = words[start : start + _BLOCK]
        # an odd factor of its own for each block, so that blocks cannot be swapped unnoticed
        total = total * 0x5851F42D4C957F2D + (part * weights[: part.numel()]).sum() * (2 * block + 1)
    return int(total.item())


def _odd_weights(count: int, device: torch.device) -> Tensor:
    """(count,) odd int64 numbers without visible order: a multiplicative hash of the position, mixed once more."""
    mixed = torch.arange(1, count + 1, device=device) * -0x61C8864680B583EB
    mixed = (mixed ^ (mixed >> 29)) * -0x4B47D0C5B9A3F1D7
    return (mixed ^ (mixed >> 32)) | 1
