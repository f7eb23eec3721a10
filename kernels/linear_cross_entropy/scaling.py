"""gradient *= factor, in place, with the factor in device memory and fp32.

`tensor.mul_(factor)` would round a 0-dimensional fp32 factor to the tensor's dtype first: 0.7 becomes
0.69921875 in bf16, an error of 1e-3 in every element, all in one direction.
"""

import triton
import triton.language as tl
from torch import Tensor

from kernels.linear_cross_entropy.launch import cdiv

BLOCK = 4096  # 16 elements a thread of 8 warps: enough bytes in flight to stream at memory speed


@triton.jit
def scale_kernel(gradient, factor, size, BLOCK: tl.constexpr):  # gradient (size,), factor () fp32
    # A program owns BLOCK consecutive elements.
    scale = tl.load(factor)
    if scale != 1.0:  # the common case of a loss that is backpropagated as it is costs no traffic
        offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        mask = offsets < size
        value = tl.load(gradient + offsets, mask=mask, other=0.0).to(tl.float32) * scale
        tl.store(gradient + offsets, value.to(gradient.dtype.element_ty), mask=mask)


def scale_in_place(gradient: Tensor, factor: Tensor) -> None:  # gradient contiguous, factor () fp32
    grid = (cdiv(gradient.numel(), BLOCK),)
    scale_kernel[grid](gradient, factor, gradient.numel(), BLOCK=BLOCK, num_warps=8)
