"""The two products that cuBLAS does better than a Triton kernel of ours: dz.T @ E and dE += dz @ C."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def without_tf32() -> Iterator[None]:
    """fp32 products on a GPU in fp32 inside, whatever torch.set_float32_matmul_precision says: "exact" means it.

    torch has an older and a newer interface to the flag, and cuBLAS's products fail where the two disagree: both are
    set, and both restored.
    """
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    newer = [backend.fp32_precision for backend in backends]
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:  # they disagree already; only the newer one can be restored
        older = None
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if older is not None:
            torch.set_float32_matmul_precision(older)
        for backend, precision in zip(backends, newer, strict=True):
            backend.fp32_precision = precision


def write_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out = a @ b, accumulated in fp32 and rounded once."""
    if a.dtype == torch.float32:
        with without_tf32():
            torch.mm(a, b, out=out)
    else:
        torch.mm(a, b, out=out)


def add_product(accumulator: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
    """accumulator (fp32) += a @ b, in place and in fp32; `first` overwrites, so that no zeros are written.

    cuBLAS reads and writes the fp32 accumulator inside the product. `torch.addmm(..., out_dtype=)` exists
    for CUDA only; elsewhere (interpreter tests) the operands are widened first.
    """
    if a.dtype == torch.float32:
        with without_tf32():
            torch.mm(a, b, out=accumulator) if first else accumulator.addmm_(a, b)
    elif not a.is_cuda:
        product = a.float() @ b.float()
        accumulator.copy_(product) if first else accumulator.add_(product)
    elif first:
        torch.mm(a, b, out_dtype=torch.float32, out=accumulator)
    else:
        torch.addmm(accumulator, a, b, out_dtype=torch.float32, out=accumulator)
