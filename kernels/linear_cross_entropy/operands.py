"""How matrices are handed to a kernel: as tensor descriptors for the copy engine, or as they are."""

from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


def row_major(matrix: Tensor, block: tuple[int, int], tma: bool) -> "Tensor | TensorDescriptor":
    """`matrix` as a kernel argument whose tiles are `block`; rows of unit stride."""
    if not tma:
        return matrix
    return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), list(block))
