"""Gates on a simulated GPU: the whole of `gate --pair`, with workers that answer at once and a clock that misbehaves.

`python -m tests.harness.gate.simulated 1000 A/A` gives the rates in docs/gating.md; without a name those of all plants.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import numpy as np

from harness.analysis.statistics.simulation import (
    BIMODAL,
    EVERYTHING,
    LIKE_H200,
    NOISE_AND_DRIFT,
    SHORT_CALLS,
    THROTTLED,
    NoiseModel,
    clock_over,
)
from harness.comparison.comparison import Comparison
from harness.comparison.policy import Policy
from harness.gate import pair_gate, pair_runner
from harness.gate.pair_gate import PairGate
from harness.gate.tree import Tree
from harness.running import rounds
from harness.running.run_directory import RunDirectory
from harness.suite import Suite, Where
from tests.harness.fake_worker import AGREEMENT, GPU, FakeWorker

EAGER_ERROR = 3.0e-3  # of a bf16 gradient at Gemma-2's size
MODELS = {
    "noise, drift": NOISE_AND_DRIFT,
    "noise, drift, throttling": THROTTLED,
    "noise, drift, two states": BIMODAL,
    "all four": EVERYTHING,
    "like H200": LIKE_H200,
}


@dataclass(frozen=True)
class Layout:
    """One case: how long its rows and the GEMM take, and how many samples a turn has."""

    times_ms: dict[str, float]
    samples_per_turn: int

    @property
    def rows(self) -> list[str]:
        return [name for name in self.times_ms if name != "referee"]

    def suite(self, seed: int) -> Suite:
        return Suite.model_validate(
            {
                "name": "simulated",
                "description": "one case",
                "cases": [{"tokens": 8192, "hidden_size": 2304, "vocab_size": 256000}],
                "implementations": self.rows,
                "reference": "ours",
                "seed": seed,
                "measurement": {
                    "minimum_rounds": 10, "samples_per_turn": self.samples_per_turn, "case_budget_s": 120
                },
            }
        )  # fmt: skip


TWO_ROWS = Layout({"ours": 60.0, "liger": 110.0, "referee": 14.0}, 2)
# examples/gate/show.yaml: calls of 11 ms, counted as 18 so that a round takes the 0.8 s that it took
ONE_SHORT_ROW = Layout({"ours": 18.0, "referee": 12.0}, 8)


@dataclass
class Planted:
    """What is different in head's `ours`, and the GPU that all share."""

    slowdown: float = 0.0  # a fraction of the time
    more_bytes: int = 0
    gradient_scale: float = 1.0
    rarely_ms: float = 0.0  # a call's share of what the timed calls leave out
    process_bias: float = 0.0  # standard deviation: what a process is slower by for as long as it lives


@dataclass
class SimulatedGpu:
    """Gives every turn its samples, and lets the time pass that it took."""

    model: NoiseModel
    seed: int
    planted: Planted
    layout: Layout
    now_s: float = 0.0
    _turn: int = 0
    _slowness: Any = field(init=False)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng([self.seed, 7])
        players = 2 * len(self.layout.rows) + 2  # an A/A and the referee
        self._slowness, _ = clock_over(players * 60, players, self.model, self._random)

    def samples_ms(self, time_ms: float, samples: int) -> list[float]:
        slow = float(self._slowness[self._turn % len(self._slowness)])
        self._turn += 1
        slow *= math.exp(self.model.turn_noise * self._random.standard_normal())
        noise = np.exp(self.model.sample_noise * self._random.standard_normal(samples))
        taken: list[float] = (time_ms * slow * noise).tolist()
        self.now_s += 1.4e-3 * (sum(taken) + time_ms)  # a no-grad forward too, and an untimed call
        return taken

    def bias(self) -> float:
        return math.exp(self.planted.process_bias * self._random.standard_normal())


class SimulatedWorker(FakeWorker):
    """A FakeWorker on the simulated GPU; what is planted is in `ours` of head."""

    gpu: ClassVar[SimulatedGpu]

    def __init__(self, log: Path, origin: Any = None) -> None:
        super().__init__(log, origin)
        self.row = self.name.partition("@")[0]
        planted = self.gpu.planted
        self.planted = planted if self.name == "ours@head" else Planted()
        self.time_ms = self.gpu.layout.times_ms.get(self.row, 1.0) * (1 + self.planted.slowdown) * self.gpu.bias()

    def _environment(self) -> dict[str, Any]:
        gpu = {"name": "simulated", "memory_bytes": 139 << 30}
        return {"cuda_available": True, "cpu_cores": 8, "gpu": gpu, "packages": {"torch": "2.11.0"}}

    def _turn(self, samples: int, lead_in_ms: float) -> dict[str, Any]:
        state = {key: [value] * samples for key, value in GPU.items()}
        taken = self.gpu.samples_ms(self.time_ms, samples)
        if self.row == "referee":
            return {"gemm_ms": taken, "copy_ms": [value / 50 for value in taken], **state}
        columns = {"fwd_no_grad_ms": 0.3, "fwd_ms": 0.4, "bwd_ms": 0.6, "fwd_bwd_ms": 1.0}
        return {name: [value * share for value in taken] for name, share in columns.items()} | state

    def _figures(self) -> dict[str, Any]:
        return {"figures": {"amortised_ms": self.planted.rarely_ms}}

    def _memory(self, **_: Any) -> dict[str, Any]:
        taken = super()._memory()
        return taken | {"fwd_bwd_peak_bytes": taken["fwd_bwd_peak_bytes"] + self.planted.more_bytes}

    def _agree(self, eager: Any, max_excess: float) -> dict[str, Any]:
        error = math.hypot(0.9 * EAGER_ERROR, self.planted.gradient_scale - 1)
        excess = error / EAGER_ERROR
        words = f"grad_weight: error {error:.2g} is {excess:.3g} x eager's {EAGER_ERROR:.2g} (limit {max_excess:g})"
        judged = {"grad_weight_error": error, "grad_weight_excess": excess}
        return AGREEMENT | judged | self._figures() | {"failures": [words] if excess > max_excess else []}


class SimulatedTree(Tree):
    """A tree whose registry is known without asking its interpreter."""

    def registry(self) -> dict[str, str]:
        return {name: f"nowhere:{name}" for name in ("ours", "liger")}


@contextmanager
def simulated_workers(gpu: SimulatedGpu) -> Iterator[None]:
    """All workers of a gate are SimulatedWorkers, and rounds see the simulated GPU's time."""
    SimulatedWorker.gpu = gpu
    FakeWorker.alive, FakeWorker.log = [], []
    time = mock.Mock(monotonic=lambda: gpu.now_s)
    with (
        mock.patch.object(pair_runner, "Worker", SimulatedWorker),
        mock.patch.object(pair_gate, "Worker", SimulatedWorker),
        mock.patch.object(rounds, "time", time),
    ):
        yield
    assert FakeWorker.alive == []


def simulated_gate(
    model: NoiseModel,
    seed: int,
    planted: Planted,
    directory: Path,
    policy: Policy | None = None,
    layout: Layout = TWO_ROWS,
) -> Comparison:
    """One gate of the rows of `layout`, base against head."""
    base, head = (SimulatedTree(name, name, Path("/"), "python", None, None, Path("/")) for name in ("base", "head"))
    suite, rules = layout.suite(seed), policy or Policy()
    gate = PairGate(suite, layout.rows, Where(), base, head, rules, RunDirectory(directory), budget_s=None)
    with simulated_workers(SimulatedGpu(model, seed, planted, layout)):
        return gate.run()


def exit_codes(model: NoiseModel, gates: int, planted: Planted, layout: Layout = TWO_ROWS) -> Counter[int]:
    """How many of so many gates ended with which exit code."""
    found: Counter[int] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(gates):
            directory = Path(scratch, str(seed))
            directory.mkdir()
            found[simulated_gate(model, seed, planted, directory, layout=layout).exit_code] += 1
    return found


if __name__ == "__main__":
    plants = {
        "A/A": Planted(),
        "0.5 % slower": Planted(slowdown=0.005),
        "1 % slower": Planted(slowdown=0.01),
        "3 % slower": Planted(slowdown=0.03),
        "A/A, processes 0.3 % apart": Planted(process_bias=0.003),
        "A/A, processes 1 % apart": Planted(process_bias=0.01),
    }
    asked = list(plants.items()) if len(sys.argv) == 2 else [(sys.argv[2], plants[sys.argv[2]])]
    settings = [(name, model, TWO_ROWS) for name, model in MODELS.items()]
    for model_name, noise_model, laid_out in [*settings, ("short calls", SHORT_CALLS, ONE_SHORT_ROW)]:
        for plant_name, plant in asked:
            codes = exit_codes(noise_model, int(sys.argv[1]), plant, laid_out)
            print(f"{model_name}; {plant_name}: {dict(codes)}", flush=True)
