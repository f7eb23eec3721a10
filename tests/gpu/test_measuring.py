"""What a worker measures on a GPU, held against calls whose memory and time are known."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from harness.case import Case
from harness.floor import time_floors
from harness.worker import environment
from harness.worker.call import Call
from harness.worker.gpu_now import gpu_now
from harness.worker.inputs import Tensors, draw
from harness.worker.memory import measure_memory
from harness.worker.probes import bytes_of_a_copy, copy_probe
from harness.worker.session import Sessions
from harness.worker.timing import gemm_probe, lead_in, sample, settle, stopwatch
from implementations.registry import REGISTRY

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

MIB = 1 << 20
CASE = Case(tokens=1024, hidden_size=1024, vocab_size=16384, inputs="gaussian")
GRADIENTS = (1024 + 16384) * 1024 * 2  # bytes: a multiple of the allocator's 512, so peaks are exact


@pytest.fixture
def idle_gpu(device: torch.device) -> None:
    """Skips what waits for the GPU by the clock where others have it too."""
    torch.cuda.synchronize(device)
    time.sleep(1.0)  # utilisation is that of up to the last second
    now = gpu_now()
    if now["nvml"] and now["busy_percent"] > 20:
        pytest.skip(f"the GPU is {now['busy_percent']} % busy with other processes' work")


class Known(torch.autograd.Function):
    """Allocates and waits as told; its gradients are zero."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, weight: torch.Tensor, plan: Planned) -> torch.Tensor:
        torch.empty(plan.forward_mib * MIB, dtype=torch.int8, device=input.device)
        ctx.kept = torch.empty(plan.retained_mib * MIB, dtype=torch.int8, device=input.device)
        ctx.plan, ctx.shapes = plan, (input, weight)
        torch.cuda._sleep(plan.forward_cycles)
        return torch.ones((), device=input.device)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> Any:
        torch.empty(ctx.plan.backward_mib * MIB, dtype=torch.int8, device=upstream.device)
        torch.cuda._sleep(ctx.plan.backward_cycles)
        return *(torch.zeros_like(t) for t in ctx.shapes), None


class Planned:
    """A loss function of known cost."""

    def __init__(self, forward_mib=1, retained_mib=1, backward_mib=1, forward_cycles=0, backward_cycles=0) -> None:
        self.forward_mib, self.retained_mib, self.backward_mib = forward_mib, retained_mib, backward_mib
        self.forward_cycles, self.backward_cycles = forward_cycles, backward_cycles

    def __call__(self, input: torch.Tensor, linear_weight: torch.Tensor, target: Any, **settings: Any) -> torch.Tensor:
        return Known.apply(input, linear_weight, self)


@pytest.fixture(scope="module")
def device() -> torch.device:
    return torch.device("cuda", 0)


@pytest.fixture(scope="module")
def tensors(device: torch.device) -> Tensors:
    drawn = draw(CASE, device)
    drawn.input.requires_grad_(True)
    drawn.linear_weight.requires_grad_(True)
    return drawn


def test_between_requests_a_worker_holds_its_inputs_alone() -> None:
    """After the oracle too: what 14 judged workers kept in their caches once left the 15th no memory for its own."""
    common = {"case": CASE.model_dump(mode="json"), "device": "cuda", "memory_fraction": 0.9}
    referee, worker = Sessions(), Sessions()
    referee.handle({"do": "open_referee", **common})
    worker.handle({"do": "open", "path": REGISTRY["baseline"], "options": {}, **common})
    referee.handle({"do": "turn", "samples": 1})
    worker.handle({"do": "settle"})
    held = torch.cuda.memory_reserved()
    eager = referee.handle({"do": "eager_errors"})
    assert torch.cuda.memory_reserved() <= held
    worker.handle({"do": "turn", "samples": 1})
    worker.handle({"do": "agree", "eager": eager, "max_excess": 4.0})
    assert torch.cuda.memory_reserved() <= held


def test_memory_is_that_of_the_call_to_the_byte(tensors: Tensors, device: torch.device) -> None:
    call = Call(Planned(forward_mib=64, retained_mib=32, backward_mib=16), CASE, tensors)
    settle(call, device)
    measured = measure_memory(call, device)
    loss = 512  # a scalar takes one block of the allocator
    assert measured.retained_bytes == 32 * MIB + loss
    assert measured.fwd_peak_bytes == 64 * MIB  # the 64 MiB are gone before the 32 MiB and the loss come
    assert GRADIENTS <= measured.bwd_peak_bytes <= GRADIENTS + 4096
    assert measured.fwd_bwd_peak_bytes == measured.bwd_peak_bytes + measured.retained_bytes


def test_memory_that_was_live_before_does_not_count(tensors: Tensors, device: torch.device) -> None:
    call = Call(Planned(), CASE, tensors)
    settle(call, device)
    before = measure_memory(call, device)
    ballast = torch.empty(256 * MIB, dtype=torch.int8, device=device)
    assert measure_memory(call, device) == before
    del ballast


@pytest.mark.usefixtures("idle_gpu")
def test_a_delay_of_the_gpu_is_seen_in_its_half(tensors: Tensors, device: torch.device) -> None:
    cycles = 4_000_000  # 2 to 4 ms
    watch = stopwatch(device)

    def median(planned: Planned) -> list[float]:
        call = Call(planned, CASE, tensors)
        settle(call, device)
        columns = zip(*(sample(call, watch) for _ in range(9)), strict=True)
        return [sorted(column)[4] for column in columns]

    # both halves always wait: without anything to wait for, a half takes as long as its launches
    _, fwd, bwd = median(Planned(forward_cycles=cycles, backward_cycles=cycles))
    _, slow_fwd, same_bwd = median(Planned(forward_cycles=2 * cycles, backward_cycles=cycles))
    _, same_fwd, slow_bwd = median(Planned(forward_cycles=cycles, backward_cycles=2 * cycles))
    delay = slow_fwd - fwd
    assert 1.5 < delay < 5  # what the clock makes of the cycles, in ms
    assert slow_bwd - bwd == pytest.approx(delay, rel=0.1)
    assert same_bwd == pytest.approx(bwd, abs=0.2)
    assert same_fwd == pytest.approx(fwd, abs=0.2)


def test_the_gemm_probe_computes_the_product_whatever_its_chunks(tensors: Tensors, device: torch.device) -> None:
    outputs = []
    for largest in (1 << 40, 5 * MIB):
        product = gemm_probe(tensors.input.detach(), tensors.linear_weight.detach(), largest)
        before = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        product()
        torch.cuda.synchronize(device)
        assert torch.cuda.max_memory_allocated(device) <= before  # nothing is allocated while it is timed
        (buffer,) = (cell.cell_contents for cell in product.__closure__ if _is_output(cell.cell_contents))
        outputs.append(buffer)
    expected = tensors.input.detach() @ tensors.linear_weight.detach().T
    torch.testing.assert_close(outputs[0].view_as(expected), expected)
    last = outputs[1].numel() // CASE.tokens
    chunk = -(-CASE.vocab_size // -(-CASE.tokens * CASE.vocab_size * 2 // (5 * MIB)))
    tail = CASE.vocab_size % chunk or chunk
    assert last == chunk
    torch.testing.assert_close(
        outputs[1][: CASE.tokens * tail].view(CASE.tokens, tail), expected[:, CASE.vocab_size - tail :]
    )


@pytest.mark.usefixtures("idle_gpu")
def test_the_lead_in_lasts_and_is_not_waited_for(tensors: Tensors, device: torch.device) -> None:
    work = lead_in(tensors.input, tensors.linear_weight, 20.0, stopwatch(device))  # of a product of some 60 us
    torch.cuda.synchronize(device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    assert not end.query()  # queued: the GPU has no pause before the call
    end.synchronize()
    assert 10 < begin.elapsed_time(end) < 60
    assert tensors.input.grad is None


def test_the_copy_is_slower_than_the_memory_s_peak_and_not_by_much(device: torch.device) -> None:
    gpu = environment.describe_environment()["gpu"]
    assert isinstance(gpu, dict)
    if gpu.get("memory_bus_bits") is None:
        pytest.skip("NVML does not tell the width of the memory bus")
    copy, watch = copy_probe(device), stopwatch(device)
    taken_ms = []
    for _ in range(9):
        watch.start()
        copy()
        watch.mark()
        taken_ms += watch.elapsed_ms()
    reached = bytes_of_a_copy(device) / sorted(taken_ms)[4] * 1e3
    peak = 2 * gpu["max_memory_clock_mhz"] * 1e6 * gpu["memory_bus_bits"] / 8  # type: ignore[operator]
    assert 0.5 * peak < reached < peak
    floors = time_floors(CASE, gpu, {})["fwd_bwd_ms"]
    assert floors.bytes_ms is not None and floors.arithmetic_ms is not None


def test_a_turn_of_the_referee_has_as_many_samples_of_everything() -> None:
    referee = Sessions()
    opened = referee.handle(
        {"do": "open_referee", "case": CASE.model_dump(mode="json"), "device": "cuda", "memory_fraction": 0.9}
    )
    held = torch.cuda.memory_reserved()
    turn = referee.handle({"do": "turn", "samples": 3})
    assert opened["copy_bytes"] == bytes_of_a_copy(torch.device("cuda", 0))
    assert {"gemm_ms", "copy_ms"} <= set(turn)
    assert {len(samples) for samples in turn.values()} == {3}  # type: ignore[arg-type]
    assert all(sample > 0 for name in ("gemm_ms", "copy_ms") for sample in turn[name])  # type: ignore[union-attr,operator]
    assert torch.cuda.memory_reserved() <= held  # its buffers are gone


def _is_output(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 1
