"""Peak memory of a call, from the allocator, above what was live before it."""

from __future__ import annotations

import torch

from harness.record import Memory
from harness.worker.call import Call


def measure_memory(call: Call, device: torch.device) -> Memory:
    """Peaks of the no-grad forward, the forward, the backward and both, and what stays live between them; in bytes.

    Expects a call that has run before, so that cuBLAS workspaces and compiled code are allocated already. Peaks repeat
    to the byte, so that one pass is enough.
    """
    call.clear_gradients()
    torch.cuda.empty_cache()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)

    torch.cuda.reset_peak_memory_stats(device)
    loss = call.forward_no_grad()
    torch.cuda.synchronize(device)
    fwd_no_grad_peak = torch.cuda.max_memory_allocated(device) - before
    del loss

    held = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    loss = call.forward()
    torch.cuda.synchronize(device)
    fwd_peak = torch.cuda.max_memory_allocated(device) - before
    retained = torch.cuda.memory_allocated(device) - before

    torch.cuda.reset_peak_memory_stats(device)
    call.backward(loss)
    torch.cuda.synchronize(device)
    bwd_peak = torch.cuda.max_memory_allocated(device) - before
    del loss
    call.clear_gradients()
    return Memory(
        fwd_no_grad_peak_bytes=fwd_no_grad_peak,
        fwd_peak_bytes=fwd_peak,
        bwd_peak_bytes=bwd_peak - retained,
        fwd_bwd_peak_bytes=max(fwd_peak, bwd_peak),
        retained_bytes=retained,
        leaked_bytes=max(0, torch.cuda.memory_allocated(device) - held),
    )
