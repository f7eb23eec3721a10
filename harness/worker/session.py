"""What a worker does with each request. One session per process: an implementation on a case, or the case's referee."""

from __future__ import annotations

import hashlib
import inspect
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue

from harness.case import Case
from harness.worker import environment, timing
from harness.worker.attribution import peak_blocks
from harness.worker.call import Call
from harness.worker.capacity import largest_fits
from harness.worker.device import (
    device_allocations,
    interpret_triton_on_cpu,
    prepare_device,
    release_cached_memory,
    synchronize,
)
from harness.worker.failure import Unavailable
from harness.worker.gpu_now import gpu_now
from harness.worker.growth import device_growth
from harness.worker.inputs import checksum, digests, draw, draw_another_batch
from harness.worker.judging import judge
from harness.worker.memory import measure_memory
from harness.worker.referee import RefereeSession
from harness.worker.yardstick import Yardstick
from implementations.contract import Implementation, Prepares
from implementations.registry import REGISTRY, load

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
            "options_mistake": options_mistake,
            "gpu_now": gpu_now,
            "warm": warm,
            "largest_fits": largest_fits,
            "open": self._open,
            "open_referee": self._open_referee,
        }
        function = functions.get(name) or getattr(self._session, name)
        answer: Answer = function(**request)
        if self._session is not None:  # workers share the device: what waits in a cache is missing elsewhere
            release_cached_memory(self._session.device)
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


def build(implementation: Implementation, options: dict[str, JsonValue]) -> Any:
    """The loss function. Raises Unavailable if its library is missing, ValueError for options that it does not have."""
    try:
        inspect.signature(implementation.build).bind(**options)
    except TypeError as error:
        allowed = ", ".join(inspect.signature(implementation.build).parameters) or "none"
        raise ValueError(f"options: {error} (it takes: {allowed})") from error
    try:
        return implementation.build(**options)
    except ImportError as error:
        install = f"; pip install '{implementation.requires}'" if implementation.requires else ""
        raise Unavailable(f"{error}{install}") from error


def available() -> Answer:
    """For every name in the registry None if it can be built here, else the reason why not."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    interpret_triton_on_cpu(device)
    return {name: _missing(load(path), {}) for name, path in REGISTRY.items()}


def warm(path: str | None, options: dict[str, JsonValue], device: str, context: bool) -> Answer:
    """Imports what a session of the implementation at `path` (None: a referee) will need, ahead of its time.

    With `context` also CUDA's, which takes some hundred MiB of the device.
    """
    interpret_triton_on_cpu(device)
    import torch._dynamo  # noqa: PLC0415  (which torch itself imports at the first backward, in seconds)

    if context:
        torch.zeros(1, device=device)
    if path is not None:
        build(load(path), options)
    return {}


def supported(path: str, options: dict[str, JsonValue], cases: list[dict[str, Any]], device: str) -> Answer:
    """For every case None if the implementation would run it on `device`, else the reason why not."""
    interpret_triton_on_cpu(device)
    implementation = load(path)
    missing = _missing(implementation, options)
    return {"reasons": [missing or implementation.supports(Case.model_validate(c), device) for c in cases]}  # type: ignore[arg-type]


def options_mistake(path: str, options: dict[str, JsonValue]) -> Answer:
    """What is wrong with the options of the implementation at `path`, or None; also where it cannot be built at all."""
    implementation = load(path)
    try:
        _missing(implementation, options)  # if something is, its row will say so
    except (ValueError, TypeError) as error:
        return {"mistake": str(error)}
    return {"mistake": None}


def source_sha256(path: str) -> str | None:
    """Of the file that holds the implementation at `pkg.mod:obj`, which no commit need know; None if it has none."""
    file = getattr(sys.modules[path.partition(":")[0]], "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None


def refusal(path: str, case: dict[str, Any], device: str) -> str | None:
    """Why the implementation at `path` does not offer the case, or None if it does."""
    interpret_triton_on_cpu(device)
    return load(path).supports(Case.model_validate(case), device)  # type: ignore[arg-type]


def _missing(implementation: Implementation, options: dict[str, JsonValue]) -> str | None:
    """What has to be installed before the implementation can be built; None if nothing."""
    try:
        build(implementation, options)
    except Unavailable as error:
        return str(error)
    return None


class ImplementationSession:
    """One implementation, one case."""

    def __init__(
        self, path: str, options: dict[str, JsonValue], case: dict[str, Any], device: str, memory_fraction: float
    ) -> None:
        self.device = prepare_device(device, memory_fraction)
        self.case = Case.model_validate(case)
        self.path = path
        self.implementation = load(path)
        self.tensors = draw(self.case, self.device)
        self.call = Call(build(self.implementation, options), self.case, self.tensors)
        self.checksum, self.intact = checksum(self.tensors), digests(self.tensors)
        for tensor in self.call.differentiated:
            tensor.requires_grad_(True)
        self.watch = timing.stopwatch(self.device)
        self.nvml = environment.nvml_handle() if self.device.type == "cuda" else None
        self.prepared = False
        self.told: dict[str, float] | None = None  # what `figures` found

    def opened(self) -> Answer:
        synchronize(self.device)
        in_forward = self.implementation.grads_in_forward
        return {
            "grads_in_forward": in_forward(self.case) if callable(in_forward) else in_forward,
            "interpreted": self.implementation.uses_triton and self.device.type == "cpu",
            "skips_work": self.implementation.skips_work,
            "autotunes": self.implementation.autotunes,
            "input_checksum": self.checksum,
            "source_sha256": source_sha256(self.path),
        }

    def settle(self) -> Answer:
        prepare_s = self._prepare()
        first_call_s, settle_s = timing.settle(self.call, self.device)
        self._yield_device()
        return {"first_call_s": first_call_s, "settle_s": prepare_s + settle_s}

    def memory(self, attribute: bool = False) -> Answer:
        growth = device_growth(self.call, self.device, self.nvml)  # first: it needs an allocator that holds nothing
        answer = measure_memory(self.call, self.device).model_dump() | growth
        if attribute:
            answer["peak_blocks"] = [block.model_dump() for block in peak_blocks(self.call, self.device)]
        self._yield_device()
        return answer

    def turn(self, samples: int, lead_in_ms: float = 0.0) -> Answer:
        """One untimed call, then `samples` timed ones, each after `lead_in_ms` of products.

        If the first still asks the device for memory it becomes a second untimed call, and another takes its place.
        """
        lead_in = timing.lead_in(self.call.tensors.input, self.call.tensors.linear_weight, lead_in_ms, self.watch)
        timing.warm_up(self.call)
        taken: dict[str, list[Any]] = {}
        for position in range(samples):
            (fwd_no_grad_ms, fwd_ms, bwd_ms), asked = self._sample(lead_in)
            if position == 0 and asked:
                (fwd_no_grad_ms, fwd_ms, bwd_ms), asked = self._sample(lead_in)
            measured = {
                "fwd_no_grad_ms": fwd_no_grad_ms,
                "fwd_ms": fwd_ms,
                "bwd_ms": bwd_ms,
                "fwd_bwd_ms": fwd_ms + bwd_ms,
                **environment.gpu_state(self.nvml),
                **({} if asked is None else {"device_allocations": asked}),
            }
            for key, value in measured.items():
                taken.setdefault(key, []).append(value)
        del lead_in  # and the memory of its products
        self._yield_device()
        return dict(taken)

    def _sample(self, lead_in: Callable[[], None]) -> tuple[tuple[float, float, float], int | None]:
        """Milliseconds of a sample, and how often it had to ask the device for memory; None on a CPU."""
        before = device_allocations(self.device)
        taken = timing.sample(self.call, self.watch, lead_in)
        after = device_allocations(self.device)
        return taken, None if before is None or after is None else after - before

    def agree(self, eager: dict[str, Any], max_excess: float) -> Answer:
        """Compares loss and gradients with the oracle, and calls with each other. `eager`: the referee's yardstick."""
        told = self.figures()
        claims = self.implementation.deterministic
        claimed = claims(self.case) if callable(claims) else claims
        judged = judge(self.call, self.intact, claimed, Yardstick.model_validate(eager), max_excess)
        answer: Answer = judged.model_dump() | told
        return answer

    def figures(self) -> Answer:
        """What the implementation says of itself: found once, so that all who ask of a case read the same."""
        if self.told is None:
            self._prepare()  # where nothing was timed nobody settled
            self.call.clear_gradients()
            self.told = self.call.figures()
            self._yield_device()  # they may come of a call; gradients that are live are memory without poison
        return {"figures": dict(self.told)}

    def _prepare(self) -> float:
        """Before the first call: what is kept from call to call is computed on tokens that are not timed. Seconds."""
        if self.prepared or not isinstance(self.call.loss_function, Prepares):
            return 0.0
        self.prepared = True
        own = self.tensors.input.detach(), self.tensors.target
        other = draw_another_batch(self.case, self.device) or own  # those where a file has no others
        synchronize(self.device)
        begin = time.perf_counter()
        self.call.prepare(*other)
        synchronize(self.device)
        return time.perf_counter() - begin

    def _yield_device(self) -> None:
        self.call.clear_gradients()
        synchronize(self.device)
