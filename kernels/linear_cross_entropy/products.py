"""The two products that cuBLAS does better than a Triton kernel of ours: dz.T @ E and dE += dz @ C."""

import torch
from torch import Tensor


def add_product(accumulator: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
    """accumulator (fp32) += a @ b, in place and in fp32; `first` overwrites, so that no zeros are written.

    cuBLAS reads and writes the fp32 accumulator inside the product. `torch.addmm(..., out_dtype=)` exists
    for CUDA only; elsewhere (interpreter tests) the operands are widened first.
    """
    if a.dtype == torch.float32:
        torch.mm(a, b, out=accumulator) if first else accumulator.addmm_(a, b)
    elif not a.is_cuda:
        product = a.float() @ b.float()
        accumulator.copy_(product) if first else accumulator.add_(product)
    elif first:
        torch.mm(a, b, out_dtype=torch.float32, out=accumulator)
    else:
        torch.addmm(accumulator, a, b, out_dtype=torch.float32, out=accumulator)
