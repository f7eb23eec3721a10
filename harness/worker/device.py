"""What a CUDA device and a CPU each need for a measurement: waiting, flushing the cache, limiting memory."""

from __future__ import annotations

import os
import resource

import torch


def synchronize(device: torch.device) -> None:
    """Waits until everything launched on `device` is done; on a CPU it already is."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release_cached_memory(device: torch.device) -> None:
    """Gives unused memory back to the device, for the workers that share it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def limit_memory(device: torch.device, fraction: float) -> None:
    """Makes allocations beyond `fraction` of the device's memory fail instead of taking the machine down."""
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(fraction, device)
    else:
        limit = int(fraction * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def interpret_triton_on_cpu(device: str) -> None:
    """Without a GPU Triton kernels run in the interpreter; that is chosen before any library is imported."""
    if device == "cpu" or not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"


def prepare_device(device: str, memory_fraction: float) -> torch.device:
    """The device, with its memory limited."""
    interpret_triton_on_cpu(device)
    chosen = torch.device("cuda", 0) if device == "cuda" else torch.device("cpu")
    limit_memory(chosen, memory_fraction)
    if device == "cpu":
        torch.set_num_threads(1)  # threads of waiting workers spin, and a descheduled one costs its slice in every call
        # the first call in a process may race within oneMKL and be wrong (pytorch issue 188792)
        for dtype in (torch.float32, torch.float64):
            torch.tanh(torch.zeros(1, dtype=dtype))
    return chosen


def free_bytes(device: torch.device) -> int:
    """Memory that an allocation could still get."""
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        return free
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def device_allocations(device: torch.device) -> int | None:
    """How often torch's allocator has asked the device for memory so far (cudaMalloc); None on a CPU."""
    if device.type != "cuda":
        return None
    return int(torch.cuda.memory_stats(device)["num_device_alloc"])


def l2_flush_buffer(device: torch.device) -> torch.Tensor | None:
    """A buffer whose writing evicts the L2 cache: twice its size. None on a CPU, whose times say little anyway."""
    if device.type != "cuda":
        return None
    return torch.empty(2 * torch.cuda.get_device_properties(device).L2_cache_size, dtype=torch.int8, device=device)
