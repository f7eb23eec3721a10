"""Label-smoothed cross-entropy of a linear head, without materialised logits. See api.py."""

from kernels.linear_cross_entropy.api import linear_cross_entropy
from kernels.linear_cross_entropy.module import LinearCrossEntropyLoss

__all__ = ["LinearCrossEntropyLoss", "linear_cross_entropy"]
