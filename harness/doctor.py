"""Whether this machine can measure: what it has, who else is on its GPU, and how much a time differs from itself."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.analysis.formats import mib, percent
from harness.analysis.gpu_state import bits_in_words
from harness.analysis.statistics.ratio import NoiseFloor, noise_floor
from harness.analysis.statistics.turns import arranged
from harness.analysis.statistics.verdict import MARGIN
from harness.case import Case, Inputs
from harness.running import runs
from harness.running.process import Worker, WorkerFailure
from implementations.registry import REGISTRY

NOISE_S = 20.0  # of turns
_TIMEOUT_S = 300.0
_SAMPLES_A_TURN = 2
_BUSY_PERCENT = 5
_USED_BYTES = 2 << 30  # by nobody in particular: a context is half a GiB
_HEAT_AND_HARDWARE = 8 | 32 | 64 | 128  # of NVML's throttle bits; a GPU at its power limit (4) is as usual
CASE = Case(tokens=4096, hidden_size=2048, vocab_size=32000, inputs=Inputs(kind="gaussian"))

Machine = dict[str, Any]


@dataclass
class Diagnosis:
    """What was seen, and what makes the machine unfit; each a sentence."""

    seen: list[str] = field(default_factory=list)
    unfit: list[str] = field(default_factory=list)
    implementations: list[tuple[str, str | None]] = field(default_factory=list)  # and why not


def diagnose(logs: Path, notice: Callable[[str], None]) -> Diagnosis:
    """Looks at everything; takes half a minute on a GPU. Raises UnfitEnvironment if no worker can even start."""
    found = Diagnosis()
    notice("versions")
    machine = runs.environment(logs / "environment.log")
    _versions(machine, found)
    if machine["cuda_available"]:
        notice("the GPU")
        try:
            _gpu(machine, _ask_once("gpu_now", logs / "gpu.log"), found)
        except WorkerFailure as failure:
            found.unfit.append(f"the GPU could not be looked at: {failure.reason}")
    else:
        found.unfit.append(
            "torch sees no CUDA GPU: agreement can be computed here, times and memory cannot be measured"
        )
    notice("implementations")
    try:
        found.implementations = list(runs.available(logs / "available.log").items())
    except WorkerFailure as failure:
        found.unfit.append(f"the implementations could not be looked at: {failure.reason}")
    if machine["cuda_available"]:
        notice(f"noise, {NOISE_S:.0f} s")
        try:
            noise(play(logs), found)
        except WorkerFailure as failure:
            found.unfit.append(f"the noise could not be measured: {failure.status.value}: {failure.reason}")
    return found


def _ask_once(what: str, log: Path) -> Machine:
    with closing(Worker(log)) as worker:
        return worker.request(what, _TIMEOUT_S)


def _versions(machine: Machine, found: Diagnosis) -> None:
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
    found.seen.append(f"Python {machine['python']}, {packages}, CUDA {machine['cuda'] or 'none'}")
    if machine["variables"]:
        found.seen.append("variables that may change kernels: " + ", ".join(machine["variables"]))
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    found.seen.append(f"{cores} CPU cores, load {load:.1f}")
    if load > cores:
        found.unfit.append(f"load {load:.1f} on {cores} cores: short calls would wait for the host")


def _gpu(machine: Machine, now: Machine, found: Diagnosis) -> None:
    gpu = machine["gpu"]
    memory, cache = mib(gpu["memory_bytes"]), mib(gpu["l2_bytes"])
    found.seen.append(
        f"{gpu['name']}, {gpu['multiprocessors']} multiprocessors, {memory} MiB, L2 {cache} MiB, "
        f"driver {gpu.get('driver', 'unknown')}"
    )
    if not now["nvml"]:
        found.unfit.append("no NVML: clocks, throttling and other processes cannot be seen")
        return
    found.seen.append(
        f"SM clock {now['sm_clock_mhz']} of {gpu['max_sm_clock_mhz']} MHz, {now['power_w']:.0f} of "
        f"{gpu['power_limit_w']:.0f} W, {now['temperature_c']} °C, {bits_in_words([now['throttle_reasons']])}"
    )
    if now["throttle_reasons"] & _HEAT_AND_HARDWARE:
        found.unfit.append(f"throttling before anything runs: {bits_in_words([now['throttle_reasons']])}")
    found.seen.append(f"{now['busy_percent']} % busy, {mib(now['used_bytes'])} MiB used")
    others = now["processes"]
    if others:
        listed = ", ".join(f"{p['pid']} ({mib(p['bytes'])} MiB)" for p in others)
        found.unfit.append(f"other processes on the GPU: {listed}")
    elif now["busy_percent"] > _BUSY_PERCENT or now["used_bytes"] > _USED_BYTES:
        found.unfit.append(
            f"somebody else is on the GPU, though no process can be seen from here: {now['busy_percent']} % busy, "
            f"{mib(now['used_bytes'])} MiB used"
        )


Turn = tuple[int, int, Machine]  # round, which of the two, the worker's answer


def play(logs: Path, seconds: float = NOISE_S) -> Iterator[Turn]:
    """Turns of two workers that run the same implementation, in random order. Raises WorkerFailure."""
    common = {"case": CASE.model_dump(mode="json"), "device": "cuda", "memory_fraction": 0.4}
    with ExitStack() as stack:
        pair = [stack.enter_context(closing(Worker(logs / f"noise-{k}.log"))) for k in range(2)]
        for worker in pair:
            worker.request("open", _TIMEOUT_S, path=REGISTRY["baseline"], options={}, **common)
            worker.request("settle", _TIMEOUT_S)
        order, end, number = random.Random(0), time.monotonic() + seconds, 0
        while time.monotonic() < end:
            for which in order.sample(range(2), 2):
                yield number, which, pair[which].request("turn", _TIMEOUT_S, samples=_SAMPLES_A_TURN)
            number += 1


def noise(turns: Iterator[Turn], found: Diagnosis) -> None:
    """What two rows of the same differ by, and what the GPU did meanwhile."""
    rounds: list[list[int]] = [[], []]
    samples: list[list[float]] = [[], []]
    bits: list[int] = []
    clocks: list[int] = []
    for number, which, answer in turns:
        taken = answer["fwd_bwd_ms"]
        rounds[which] += [number] * len(taken)
        samples[which] += taken
        bits += answer.get("throttle_reasons", [])
        clocks += answer.get("sm_clock_mhz", [])
    pair = [arranged("baseline", r, s) for r, s in zip(rounds, samples, strict=True)] if samples[1] else []
    floor: NoiseFloor | None = noise_floor(pair[0], pair[1]) if pair else None
    if floor is None:
        found.unfit.append(f"only {len(samples[0])} samples of the noise in {NOISE_S:.0f} s: nothing can be said of it")
        return
    found.seen.append(
        f"A/A: baseline over itself {floor.ratio.estimate:.4f} [{floor.ratio.low:.4f}, {floor.ratio.high:.4f}] in "
        f"{floor.ratio.rounds} rounds, so {percent(floor.margin)} of noise; verdicts use a margin of {percent(MARGIN)}"
    )
    if clocks:
        found.seen.append(f"meanwhile SM clock {min(clocks)} to {max(clocks)} MHz, {bits_in_words(bits)}")
    if floor.margin > MARGIN:
        found.unfit.append(f"A/A noise of {percent(floor.margin)}: a difference of {percent(MARGIN)} could not be seen")
    hot = sum(bool(reason & _HEAT_AND_HARDWARE) for reason in bits)
    if hot:
        found.unfit.append(f"throttled by heat or hardware in {percent(hot / len(bits))} of the samples under load")


def as_text(found: Diagnosis) -> str:
    """What is printed."""
    lines = [f"- {line}" for line in found.seen]
    usable = [name for name, reason in found.implementations if reason is None]
    lines.append(f"- implementations available: {', '.join(usable) or 'none'}")
    lines += [f"- not available: {name}: {reason}" for name, reason in found.implementations if reason is not None]
    if not found.unfit:
        return "\n".join([*lines, "", "Fit to measure."])
    return "\n".join([*lines, "", "Not fit to measure:", *(f"- {reason}" for reason in found.unfit)])
