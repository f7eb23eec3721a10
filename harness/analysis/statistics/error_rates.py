"""How often verdicts and intervals are wrong, measured on the simulated clock."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from harness.analysis.statistics.ratio import ratio_interval
from harness.analysis.statistics.simulation import (
    NoiseModel,
    SimulatedRun,
    rounds_when_narrow,
    simulate,
    verdict_when_sure,
)
from harness.analysis.statistics.verdict import MARGIN, Verdict, verdict_of

# A case with five rows; only base and head are compared, the others make a round as long as it is.
_TIMES_MS = {"base": 60.0, "head": 60.0, "gemm": 14.0, "faster": 45.0, "slower": 110.0}


@dataclass(frozen=True)
class ErrorRates:
    """Shares of simulated runs."""

    runs: int
    verdicts: dict[Verdict, float]
    coverage: float  # of the true ratio by the 95 % interval after the last round
    mean_rounds: float

    @property
    def false_alarms(self) -> float:
        """FASTER or SLOWER: of an A/A, where both are wrong."""
        return self.verdicts[Verdict.FASTER] + self.verdicts[Verdict.SLOWER]


def simulated_case(model: NoiseModel, rounds: int, seed: int, slowdown: float = 0.0) -> SimulatedRun:
    """One case whose row "head" is slower than "base" by a fraction."""
    return simulate(_TIMES_MS | {"head": _TIMES_MS["base"] * (1 + slowdown)}, rounds, model, seed)


def error_rates(
    model: NoiseModel, rounds: int, slowdown: float = 0.0, runs: int = 1000, margin: float = MARGIN
) -> ErrorRates:
    """Verdicts after a fixed number of rounds; a slowdown of 0 is an A/A."""
    verdicts: Counter[Verdict] = Counter()
    covered = 0
    for seed in range(runs):
        turns = simulated_case(model, rounds, seed, slowdown).turns
        ratio = ratio_interval(turns["head"], turns["base"])
        verdicts[verdict_of(ratio, margin)] += 1
        covered += ratio is not None and ratio.low <= 1 + slowdown <= ratio.high
    return ErrorRates(runs, {kind: verdicts[kind] / runs for kind in Verdict}, covered / runs, rounds)


def stopped_error_rates(
    model: NoiseModel, slowdown: float = 0.0, runs: int = 1000, target: float = 0.01, most: int = 120
) -> ErrorRates:
    """Verdicts when a run ends as the harness's does: once the ratio is known to `target` (`rounds_when_narrow`)."""
    verdicts: Counter[Verdict] = Counter()
    covered = total = 0
    for seed in range(runs):
        turns = simulated_case(model, most, seed, slowdown).turns
        rounds = rounds_when_narrow(turns["base"], turns["head"], target)
        ratio = ratio_interval(turns["head"].first(rounds), turns["base"].first(rounds))
        verdicts[verdict_of(ratio)] += 1
        covered += ratio is not None and ratio.low <= 1 + slowdown <= ratio.high
        total += rounds
    return ErrorRates(runs, {kind: verdicts[kind] / runs for kind in Verdict}, covered / runs, total / runs)


def extended_error_rates(model: NoiseModel, slowdown: float = 0.0, runs: int = 1000, most: int = 80) -> ErrorRates:
    """Verdicts when UNSURE plays on, as `verdict_when_sure` does; coverage is that of the last interval looked at."""
    verdicts: Counter[Verdict] = Counter()
    covered = total = 0
    for seed in range(runs):
        turns = simulated_case(model, most, seed, slowdown).turns
        found, rounds = verdict_when_sure(turns["base"], turns["head"], most=most)
        ratio = ratio_interval(turns["head"].first(rounds), turns["base"].first(rounds))
        verdicts[found] += 1
        covered += ratio is not None and ratio.low <= 1 + slowdown <= ratio.high
        total += rounds
    return ErrorRates(runs, {kind: verdicts[kind] / runs for kind in Verdict}, covered / runs, total / runs)
