"""What several tests of the worker compare with."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.case import Case
from harness.worker.inputs import IGNORE_INDEX, Tensors

LossAndGradients = tuple[Tensor, tuple[Tensor, Tensor, Tensor | None]]


@pytest.fixture
def torch_eager() -> Callable[[Case, Tensors, torch.dtype], LossAndGradients]:
    """Loss and gradients of torch's own two lines, everything converted to a dtype first."""

    def compute(case: Case, tensors: Tensors, dtype: torch.dtype) -> LossAndGradients:
        input, linear_weight = (t.to(dtype).requires_grad_() for t in (tensors.input, tensors.linear_weight))
        bias = None if tensors.linear_bias is None else tensors.linear_bias.to(dtype).requires_grad_()
        z = F.linear(input, linear_weight, bias)
        if case.softcap is not None:
            z = case.softcap * torch.tanh(z / case.softcap)
        loss = F.cross_entropy(
            z if dtype is torch.float64 else z.float(),
            tensors.target,
            ignore_index=IGNORE_INDEX,
            label_smoothing=case.label_smoothing,
            reduction=case.reduction,
        )
        loss.backward(tensors.upstream.to(loss.dtype))
        assert input.grad is not None
        assert linear_weight.grad is not None
        return loss.detach(), (input.grad, linear_weight.grad, None if bias is None else bias.grad)

    return compute
