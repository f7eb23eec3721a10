"""What a worker does with each request. One session per process: an implementation on a case, or the case's referee.

The referee holds the same tensors and no implementation: it describes them, times the GEMM, and computes the error of
eager arithmetic that every implementation of the case is judged by.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from pydantic import JsonValue

from harness.case import Case
from harness.worker import environment, timing
from harness.worker.agreement import agree
from harness.worker.call import Call
from harness.worker.device import free_bytes, limit_memory, release_cached_memory, synchronize
from harness.worker.eager import EagerErrors, eager_errors
from harness.worker.failure import Unavailable
from harness.worker.inputs import checksum, draw
from harness.worker.memory import measure_memory
from harness.worker.oracle import Oracle, oracle
from harness.worker.statistics import input_statistics
from implementations.contract import Implementation
from implementations.registry import REGISTRY, load

_ORACLE_SHARE = 0.6  # of the free memory; the rest stays for the gradients that are compared
_PROBE_SHARE = 8  # the GEMM's output takes at most this fraction of the device's memory, 1/8

Answer = dict[str, JsonValue]


class Sessions:
    """Dispatches requests `{"do": name, ...}` to the one session of this process."""

    def __init__(self) -> None:
        self._session: ImplementationSession | RefereeSession | None = None

    def handle(self, request: dict[str, Any]) -> Answer:
        name = request.pop("do")
        if name.startswith("open"):
            self._session = None  # its tensors make room for the next ones
        functions: dict[str, Callable[..., Answer]] = {
            "environment": environment.describe_environment,
            "available": available,
            "supported": supported,
            "open": self._open,
            "open_referee": self._open_referee,
        }
        function = functions.get(name) or getattr(self._session, name)
        answer: Answer = function(**request)
        return answer

    def _open(self, **request: Any) -> Answer:
        reason = refusal(request["path"], request["case"], request["device"])
        if reason is not None:
            return {"refused": reason}
        self._session = ImplementationSession(**request)
        return self._session.opened()

    def _open_referee(self, **request: Any) -> Answer:
        self._session = RefereeSession(**request)
        return self._session.opened()


def interpret_triton_on_cpu(device: str) -> None:
    """Without a GPU Triton kernels run in the interpreter; that is chosen before any library is imported."""
    if device == "cpu" or not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"


def prepare_device(device: str, memory_fraction: float) -> torch.device:
    """The device, with its memory limited."""
    interpret_triton_on_cpu(device)
    chosen = torch.device("cuda", 0) if device == "cuda" else torch.device("cpu")
    limit_memory(chosen, memory_fraction)
    if device == "cpu":  # the first call in a process may race within oneMKL and be wrong (pytorch issue 188792)
        for dtype in (torch.float32, torch.float64):
            torch.tanh(torch.zeros(1, dtype=dtype))
    return chosen


def build(implementation: Implementation, options: dict[str, JsonValue]) -> Any:
    """The loss function. Raises Unavailable if its library is missing."""
    try:
        return implementation.build(**options)
    except ImportError as error:
        install = f"; pip install '{implementation.requires}'" if implementation.requires else ""
        raise Unavailable(f"{error}{install}") from error


def available() -> Answer:
    """For every name in the registry None if it can be built here, else the reason why not."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    interpret_triton_on_cpu(device)
    return {name: _why_not(path, {}, None, device) for name, path in REGISTRY.items()}


def supported(cells: list[tuple[str, dict[str, JsonValue], dict[str, Any]]], device: str) -> Answer:
    """For every cell (path, options, case) None if it would run on `device`, else the reason why not."""
    interpret_triton_on_cpu(device)
    return {"reasons": [_why_not(path, options, Case.model_validate(case), device) for path, options, case in cells]}


def refusal(path: str, case: dict[str, Any], device: str) -> str | None:
    """Why the implementation at `path` does not offer the case, or None if it does."""
    interpret_triton_on_cpu(device)
    return load(path).supports(Case.model_validate(case), device)  # type: ignore[arg-type]


def _why_not(path: str, options: dict[str, JsonValue], case: Case | None, device: str) -> str | None:
    implementation = load(path)
    try:
        build(implementation, options)
    except Unavailable as error:
        return str(error)
    return None if case is None else implementation.supports(case, device)  # type: ignore[arg-type]


class ImplementationSession:
    """One implementation, one case."""

    def __init__(
        self, path: str, options: dict[str, JsonValue], case: dict[str, Any], device: str, memory_fraction: float
    ) -> None:
        self.device = prepare_device(device, memory_fraction)
        self.case = Case.model_validate(case)
        self.implementation = load(path)
        self.tensors = draw(self.case, self.device)
        self.call = Call(build(self.implementation, options), self.case, self.tensors)
        self.checksum = checksum(self.tensors)
        for tensor in self.call.differentiated:
            tensor.requires_grad_(True)
        self.watch = timing.stopwatch(self.device)
        self.nvml = environment.nvml_handle() if self.device.type == "cuda" else None

    def opened(self) -> Answer:
        synchronize(self.device)
        return {
            "grads_in_forward": self.implementation.grads_in_forward,
            "interpreted": self.implementation.uses_triton and self.device.type == "cpu",
            "skips_work": self.implementation.skips_work,
            "input_checksum": self.checksum,
        }

    def settle(self) -> Answer:
        first_call_s, settle_s = timing.settle(self.call, self.device)
        self._yield_device()
        return {"first_call_s": first_call_s, "settle_s": settle_s}

    def memory(self) -> Answer:
        answer = measure_memory(self.call, self.device).model_dump()
        self._yield_device()
        return answer

    def turn(self, samples: int) -> Answer:
        """One untimed call, then `samples` timed ones."""
        timing.warm_up(self.call)
        taken: dict[str, list[Any]] = {}
        for _ in range(samples):
            fwd_no_grad_ms, fwd_ms, bwd_ms = timing.sample(self.call, self.watch)
            measured = {
                "fwd_no_grad_ms": fwd_no_grad_ms,
                "fwd_ms": fwd_ms,
                "bwd_ms": bwd_ms,
                "fwd_bwd_ms": fwd_ms + bwd_ms,
                **environment.gpu_state(self.nvml),
            }
            for key, value in measured.items():
                taken.setdefault(key, []).append(value)
        self._yield_device()
        return dict(taken)

    def agree(self, eager: dict[str, Any], max_excess: float) -> Answer:
        """Compares loss and gradients of one call with the oracle."""
        self.call.clear_gradients()
        loss = self.call.forward()
        self.call.backward(loss)
        loss = loss.detach()
        synchronize(self.device)
        gradients = [tensor.grad for tensor in self.call.differentiated]
        self.call.clear_gradients()
        grad_bias = gradients[2] if self.tensors.linear_bias is not None else None
        release_cached_memory(self.device)
        judged = agree(
            self.case,
            loss,
            (gradients[0], gradients[1], grad_bias),
            self._oracle(),
            EagerErrors(**eager),
            max_excess,
        )
        if checksum(self.tensors) != self.checksum:
            judged = judged.model_copy(update={"failures": [*judged.failures, "the call changed its inputs"]})
        answer: Answer = judged.model_dump()
        return answer

    def _oracle(self) -> Oracle:
        for tensor in self.call.differentiated:
            tensor.requires_grad_(False)
        return oracle(self.case, self.tensors, int(_ORACLE_SHARE * free_bytes(self.device)))

    def _yield_device(self) -> None:
        self.call.clear_gradients()
        synchronize(self.device)
        release_cached_memory(self.device)


class RefereeSession:
    """The case's tensors without an implementation."""

    def __init__(self, case: dict[str, Any], device: str, memory_fraction: float) -> None:
        self.device = prepare_device(device, memory_fraction)
        self.case = Case.model_validate(case)
        self.tensors = draw(self.case, self.device)
        self.checksum = checksum(self.tensors)
        self.watch = timing.stopwatch(self.device)

    def opened(self) -> Answer:
        synchronize(self.device)
        return {"input_checksum": self.checksum}

    def statistics(self) -> Answer:
        described = input_statistics(self.case, self.tensors)
        release_cached_memory(self.device)
        return described

    def turn(self, samples: int) -> Answer:
        """Times the GEMM; its buffer lives only as long as the turn."""
        total = free_bytes(self.device)
        product = timing.gemm_probe(self.tensors.input, self.tensors.linear_weight, max(1 << 20, total // _PROBE_SHARE))
        product()
        gemm_ms: list[JsonValue] = []
        for _ in range(samples):
            self.watch.start()
            product()
            self.watch.mark()
            gemm_ms += self.watch.elapsed_ms()
        del product
        release_cached_memory(self.device)
        return {"gemm_ms": gemm_ms}

    def eager_errors(self) -> Answer:
        budget = int(_ORACLE_SHARE * free_bytes(self.device))
        truth = oracle(self.case, self.tensors, budget)
        errors = eager_errors(self.case, self.tensors, truth, int(_ORACLE_SHARE * free_bytes(self.device)))
        del truth
        release_cached_memory(self.device)
        answer: Answer = asdict(errors)
        return answer
