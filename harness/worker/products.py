"""Matrix products whose precision does not depend on global flags, and the chunks they are computed in.

Everything here is the referee's arithmetic: exactly one meaning on every device. Shapes: n tokens of a chunk, D hidden
size, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

SLICE_BYTES = 1 << 28  # what a slice of the vocabulary may take once converted: small beside any (N, V) chunk


@contextmanager
def without_tf32() -> Iterator[None]:
    """fp32 products in fp32 inside, whatever a library has set; the flags are as before outside.

    torch has an older and a newer interface to the same flags and refuses to read the older one once they disagree.
    """
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    newer = [backend.fp32_precision for backend in backends]
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:
        older = None
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if older is not None:
            torch.set_float32_matmul_precision(older)
        for backend, precision in zip(backends, newer, strict=True):
            backend.fp32_precision = precision


def slices(rows: int, row_bytes: int, slice_bytes: int = SLICE_BYTES) -> list[slice]:
    """Consecutive slices that cover `rows` rows, each at most `slice_bytes`, or one row."""
    step = max(1, slice_bytes // max(1, row_bytes))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def converts(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether `product` copies `tensor` to compute in `dtype`: not on CUDA, where tensor cores take half precision."""
    return tensor.dtype != dtype and not (tensor.is_cuda and dtype is torch.float32)


def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """`a.to(dtype) @ b.to(dtype)` (m, n) for a (m, k) and b (k, n); what `converts` spares must be of one dtype.

    Tensor cores multiply bf16 and fp16 exactly and accumulate in fp32, which is what the conversion means.
    """
    if converts(a, dtype) or a.dtype == dtype:
        return a.to(dtype) @ b.to(dtype)
    return torch.mm(a, b, out_dtype=dtype)


def logits(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """input (n, D) @ linear_weight (V, D) transposed, plus the bias: (n, V) in `dtype`, fp32 or fp64; no softcap."""
    vocab_size, hidden_size = linear_weight.shape
    result = torch.empty(input.shape[0], vocab_size, dtype=dtype, device=input.device)
    for part in slices(vocab_size, hidden_size * dtype.itemsize):
        result[:, part] = product(input, linear_weight[part].T, dtype)
    return result if linear_bias is None else result.add_(linear_bias.to(dtype))


def softcap_(z: Tensor, softcap: float | None) -> Tensor:
    """softcap * tanh(z / softcap), in place."""
    return z if softcap is None else z.div_(softcap).tanh_().mul_(softcap)
