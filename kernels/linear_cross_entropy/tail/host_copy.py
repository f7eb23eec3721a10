"""Numbers that the host needs, fetched while the GPU goes on."""

import torch
from torch import Tensor


class HostCopy:
    """A small tensor on its way to the host."""

    def __init__(self, tensor: Tensor) -> None:
        self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        self._host.copy_(tensor, non_blocking=True)
        self._copied = torch.cuda.Event() if tensor.is_cuda else None
        if self._copied is not None:
            self._copied.record()

    def wait(self) -> Tensor:
        """The tensor; the host waits for it."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._host
