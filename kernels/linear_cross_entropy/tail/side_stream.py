"""Small kernels beside large ones: a chain of them, each of a few programs, leaves a GPU empty if it runs alone."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Fork:
    """A point of the current stream from which other work may go on beside it. On a CPU everything is in one line."""

    def __init__(self, device: torch.device) -> None:
        self._stream = _side_stream(device) if device.type == "cuda" else None
        self._event = torch.cuda.Event() if self._stream is not None else None
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(device))

    @contextmanager
    def beside(self) -> Iterator[None]:
        """What is launched inside follows this point, not what the current stream was given since.

        Whoever uses a result outside waits for the host copy of one first (host_copy.py), and hands over its memory
        with `keep`; what is read inside must live until then.
        """
        if self._stream is None or self._event is None:
            yield
            return
        self._stream.wait_event(self._event)
        with torch.cuda.stream(self._stream):
            yield


def keep(*tensors: torch.Tensor) -> None:
    """Memory of the side stream that the current stream reads: not to be given away before that is done."""
    for tensor in tensors:
        if tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))


@functools.lru_cache(maxsize=16)
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device, priority=-1)  # before what fills the GPU, or it would come after all of that
