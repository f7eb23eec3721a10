"""Triton kernels for large-vocabulary losses.

Light on purpose: it imports torch, and nothing of triton until a CUDA tensor arrives. Hugging Face
publishes a distribution whose import name is also `kernels`, and libraries probe for it by importing it.

The function has the name of its subpackage, and the import system binds a subpackage to its parent when it
is first loaded. Importing here, before anyone else can, lets the function's name win for good; modules of
the subpackage are reached by `from kernels.linear_cross_entropy import forward`.
"""

from kernels.linear_cross_entropy.api import linear_cross_entropy
from kernels.linear_cross_entropy.module import LinearCrossEntropyLoss

__all__ = ["LinearCrossEntropyLoss", "linear_cross_entropy"]
