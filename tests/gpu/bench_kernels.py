"""What every choice in the kernels costs on the Gemma-2 head, in GEMMs: tests/gpu/bench_kernels.py (130 s at most)

GEMM is the cuBLAS logits product. A GPU at its power limit drifts by 20 % within a second, so nothing is compared
across time: the candidates of a table are sampled in rounds, in random order, with GEMM samples among them, the L2
flushed before each, nothing waited for inside a round. A cell is the median over rounds of (candidate / median GEMM of
the same round), and in brackets the quartiles. Tables come most important first, and none starts after the budget.
Errors are ||g - g64|| / ||g64||, in brackets over those of eager arithmetic.
"""

# ruff: noqa: N806 - N, D, V, E and C are the names of the glossary

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from kernels import linear_cross_entropy
from kernels.linear_cross_entropy import dense, filtered, forward, reference
from kernels.linear_cross_entropy.config import HOPPER_TILE, POINTER_TILE, Tile
from kernels.linear_cross_entropy.logit_gradient import write_logit_gradient
from kernels.linear_cross_entropy.problem import Gradients, Method, Needs, Problem, Statistics
from kernels.linear_cross_entropy.products import add_product
from tests.linear_cross_entropy.cases import eager_arithmetic, error, make_problem, mean_upstream, oracle

MIB = 2**20
STARTED = time.perf_counter()
WIDTHS = (8448, 12800, 16896, 25344, 33792)
VARIANTS: dict[str, dict[str, object]] = {
    "exact": {},
    "filtered-sorted": {"gradient": "filtered"},
    "filtered": {"gradient": "filtered", "sort_vocabulary": False},
    "fused-exact": {"fused": True},
    "fused-filtered": {"gradient": "filtered", "fused": True},
    "exact, pack_tokens=False": {"pack_tokens": False},
    "filtered-off": {"gradient": "filtered", "filter_eps": None},
}
Mark = Callable[[], None]  # ends a part of a candidate's time
Candidate = Callable[[Mark], object]


def say(line: str) -> None:
    print(f"[{time.perf_counter() - STARTED:5.1f} s] {line}", flush=True)


def whole(call: Callable[[], object]) -> Candidate:
    """A candidate of one part."""
    return lambda mark: (call(), mark())


class Bench:
    """Samples tables of candidates against GEMM."""

    def __init__(self, problem: Problem, budget_s: float, rounds: int) -> None:
        self.budget_s, self.rounds, self.random = budget_s, rounds, random.Random(0)
        self.flush = torch.empty(128 * MIB, dtype=torch.int8, device="cuda")
        N, V = problem.tokens, problem.vocab_size
        self.gemm_pieces = [problem.weight[start : start + 65536].t() for start in range(0, V, 65536)]
        self.gemm_input, self.gemm_out = problem.input, torch.empty(N * 65536, device="cuda", dtype=problem.input.dtype)

    def gemm(self, mark: Mark) -> None:
        for piece in self.gemm_pieces:
            out = self.gemm_out[: len(self.gemm_input) * piece.shape[1]].view(-1, piece.shape[1])
            torch.mm(self.gemm_input, piece, out=out)
        mark()

    def sample(self, candidate: Candidate) -> list[torch.cuda.Event]:
        self.flush.zero_()
        events = [torch.cuda.Event(enable_timing=True)]
        events[0].record()

        def mark() -> None:
            events.append(torch.cuda.Event(enable_timing=True))
            events[-1].record()

        candidate(mark)
        return events

    def table(self, title: str, candidates: dict[str, Candidate]) -> None:
        if time.perf_counter() - STARTED > self.budget_s:
            say(f"{title}: not run, out of time")
            return
        working = {}
        for name, candidate in candidates.items():
            try:  # compiles, allocates, fails
                self.sample(candidate)
                torch.cuda.synchronize()
                working[name] = candidate
            except Exception as problem:  # noqa: BLE001 - a failed candidate is a result
                say(f"{title} | {name}: FAILED {type(problem).__name__}: {str(problem)[:300]}")
                torch.cuda.empty_cache()
        ratios: dict[str, list[list[float]]] = {name: [] for name in working}
        gemms: list[float] = []
        for index in range(self.rounds + 1):
            order = list(working)
            self.random.shuffle(order)
            for place in range(len(order), -1, -3):
                order.insert(place, "GEMM")
            events = [(name, self.sample(self.gemm if name == "GEMM" else working[name])) for name in order]
            torch.cuda.synchronize()
            if index == 0:
                continue  # the GPU reaches its power limit
            times = [(name, [a.elapsed_time(b) for a, b in pairwise(e)]) for name, e in events]
            gemm = statistics.median(parts[0] for name, parts in times if name == "GEMM")
            gemms.append(gemm)
            for name, parts in times:
                if name != "GEMM":
                    ratios[name].append([part / gemm for part in parts])
        gemm = statistics.median(gemms)
        say(f"{title}: GEMM {gemm:.2f} ms ({min(gemms):.2f} to {max(gemms):.2f}), {self.rounds} rounds")
        for name, samples in ratios.items():
            low, middle, high = statistics.quantiles([sum(parts) for parts in samples], n=4)
            parts = [f"{statistics.median(column):.3f}" for column in zip(*samples, strict=True)]
            tail = f" = {' + '.join(parts)}" if len(parts) > 1 else ""
            print(f"    {name:34s} {middle:6.3f} ({low:.3f} {high:.3f}) {middle * gemm:6.2f} ms{tail}", flush=True)


def call_loss(problem: Problem, options: dict[str, object]) -> Tensor:
    return linear_cross_entropy(
        problem.input, problem.weight, problem.target, label_smoothing=problem.label_smoothing,
        softcap=problem.softcap or None, **options,
    )  # fmt: skip


def train(problem: Problem, options: dict[str, object], mark: Mark) -> None:
    """Forward | backward, with an upstream gradient of 0.7: 1 would spare the fused backward its work."""
    leaves = problem.input.requires_grad_(), problem.weight.requires_grad_()
    upstream = torch.full((), 0.7, device="cuda")
    loss = call_loss(problem, options)
    mark()
    loss.backward(upstream)
    mark()
    for leaf in leaves:
        leaf.grad = None
        leaf.requires_grad_(False)


def infer(problem: Problem) -> None:
    with torch.no_grad():
        call_loss(problem, {})


def memory_and_errors(title: str, problem: Problem, names: list[str]) -> None:
    """Peak above the inputs as a multiple of the gradients, and errors against fp64."""
    upstream = mean_upstream(problem)
    reference.CHUNK_BYTES = 2 * 2**30
    exact = oracle(problem, upstream)[1]
    reference.CHUNK_BYTES = 64 * MIB
    narrow = eager_arithmetic(problem, upstream)
    eager = error(narrow.input, exact.input), error(narrow.weight, exact.weight)
    del narrow
    torch.cuda.empty_cache()
    say(f"{title}: eager arithmetic dE {eager[0]:.2e} dC {eager[1]:.2e}")
    for name in names:
        try:
            _memory_and_errors(name, problem, exact, eager)
        except Exception as failure:  # noqa: BLE001
            print(f"    {name:34s} FAILED {type(failure).__name__}: {str(failure)[:300]}", flush=True)


def _memory_and_errors(name: str, problem: Problem, exact: Gradients, eager: tuple[float, float]) -> None:
    peaks = []
    gradients = (problem.tokens + problem.vocab_size) * problem.hidden_size * problem.input.element_size()
    for backward in (False, True):
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        if backward:
            problem.input.requires_grad_(), problem.weight.requires_grad_()
            call_loss(problem, VARIANTS[name]).backward(torch.full((), 0.7, device="cuda"))
        else:
            infer(problem)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    dE, dC = error(problem.input.grad, exact.input), error(problem.weight.grad, exact.weight)
    print(
        f"    {name:34s} no-grad {peaks[0] / MIB:5.2f} MiB,"
        f" peak {peaks[1] / MIB:6.1f} MiB {peaks[1] / gradients:.3f} x,"
        f" dE {dE:.2e} ({dE / eager[0]:.2f}) dC {dC:.2e} ({dC / eager[1]:.2f})",
        flush=True,
    )
    for leaf in (problem.input, problem.weight):
        leaf.grad = None
        leaf.requires_grad_(False)


def forward_candidates(problem: Problem) -> dict[str, Candidate]:
    four, flat = replace(HOPPER_TILE, stages=4), replace(problem, label_smoothing=0.0)
    run = lambda tile, groups, case=problem: whole(partial(forward.statistics, case, tile, groups))  # noqa: E731
    return {
        "3 stages, 2 groups": run(HOPPER_TILE, 2),
        "4 stages, 2 groups": run(four, 2),
        "3 stages, 33 groups": run(HOPPER_TILE, 33),
        "4 stages, 33 groups": run(four, 33),
        "3 stages, 2 groups, beta 0": run(HOPPER_TILE, 2, flat),
        "4 stages, 2 groups, beta 0": run(four, 2, flat),
        "3 stages, 2 groups, softcap 30": run(HOPPER_TILE, 2, replace(problem, softcap=30.0)),
        "the function without grad": whole(partial(infer, problem)),
        "256x128x64, 3 stages": run(Tile(256, 128, 64, 8, 3, True), None),
        "pointers, 128x128x32": run(POINTER_TILE, None),
    }


def part_candidates(problem: Problem, stats: Statistics, upstream: Tensor) -> dict[str, Candidate]:
    """Each step of the exact backward alone, over the whole vocabulary, by slice width."""
    N, V, D = problem.tokens, problem.vocab_size, problem.hidden_size
    nothing, accumulator = torch.zeros_like(upstream), torch.zeros(N, D, device="cuda")
    dz_all = torch.zeros(N * max(WIDTHS), device="cuda", dtype=problem.input.dtype)
    grad_weight = torch.empty(max(WIDTHS), D, device="cuda", dtype=problem.weight.dtype)

    def over_slices(step: Callable[[Problem, Tensor, int], None], width: int, mark: Mark) -> None:
        for start in range(0, V, width):
            part = problem.classes(start, min(start + width, V))
            step(part, dz_all[: N * part.vocab_size].view(N, -1), start)
        mark()

    def logit_gradient(part: Problem, dz: Tensor, start: int) -> None:
        write_logit_gradient(part, V, start, stats, upstream, nothing, dz, HOPPER_TILE)

    def input_gradient(part: Problem, dz: Tensor, start: int) -> None:
        add_product(accumulator, dz, part.weight, first=start == 0)

    def weight_gradient(part: Problem, dz: Tensor, _: int) -> None:
        torch.mm(dz.t(), problem.input, out=grad_weight[: part.vocab_size])

    steps = {"dz": logit_gradient, "dE": input_gradient, "dC": weight_gradient}
    return {f"{name} {width}": partial(over_slices, step, width) for name, step in steps.items() for width in WIDTHS}


def exact_widths(problem: Problem, stats: Statistics, upstream: Tensor) -> dict[str, Candidate]:
    call = partial(dense.gradients, problem, stats, upstream, torch.zeros_like(upstream), Needs(True, True))
    return {f"exact backward {width}": whole(partial(call, width=width)) for width in (None, *WIDTHS)}


def filtered_widths(problem: Problem, stats: Statistics, upstream: Tensor) -> dict[str, Candidate]:
    call = partial(filtered.gradients, problem, stats, upstream, torch.zeros_like(upstream), Needs(True, True))
    return {
        f"filtered{'-sorted' if sort else ''} {width}": whole(partial(call, Method(True, 2.0**-12, sort), width=width))
        for sort in (True, False)
        for width in (3072, 8448, 16896)
    }


def active_share(problem: Problem, stats: Statistics, upstream: Tensor, sort: bool) -> float:
    """Of the tiles, those that the filter leaves."""
    seen: list[tuple[Tensor, int]] = []
    original = filtered.ActiveLists
    filtered.ActiveLists = lambda active: seen.append((active.sum(), active.numel())) or original(active)
    try:
        method = Method(True, 2.0**-12, sort)
        filtered.gradients(problem, stats, upstream, torch.zeros_like(upstream), Needs(True, True), method)
    finally:
        filtered.ActiveLists = original
    return sum(float(count) for count, _ in seen) / sum(total for _, total in seen)


def ignored_rows(problem: Problem) -> dict[str, Candidate]:
    """Half of the tokens ignored: every second one, or one half of the batch."""
    scattered, together = problem.target.clone(), problem.target.clone()
    scattered[::2] = together[: len(together) // 2] = -100
    return {
        f"exact, ignored {where}, pack {pack}": partial(train, replace(problem, target=target), {"pack_tokens": pack})
        for where, target in (("scattered", scattered), ("together", together))
        for pack in (True, False)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--hidden-size", type=int, default=2304)
    parser.add_argument("--vocab-size", type=int, default=256000)
    parser.add_argument("--kind", default="zipf")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--budget-s", type=float, default=115.0, help="no table starts later")
    arguments = parser.parse_args()
    shape = (arguments.kind, arguments.tokens, arguments.hidden_size, arguments.vocab_size)
    say(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {shape}")
    problem = make_problem(*shape, dtype=torch.bfloat16, beta=0.1, device="cuda")
    plain, capped = replace(problem, label_smoothing=0.0), replace(problem, softcap=30.0)
    bench = Bench(problem, arguments.budget_s, arguments.rounds)
    trains = lambda case, names: {name: partial(train, case, VARIANTS[name]) for name in names}  # noqa: E731
    bench.table("forward + backward, beta 0.1", trains(problem, VARIANTS))
    bench.table("forward + backward, beta 0", trains(plain, list(VARIANTS)[:5]))
    bench.table("forward, beta 0.1", forward_candidates(problem))
    stats, upstream = forward.statistics(problem), mean_upstream(problem)
    bench.table("steps of the exact backward", part_candidates(problem, stats, upstream))
    bench.table("exact backward by width", exact_widths(problem, stats, upstream))
    memory_and_errors("memory and errors, beta 0.1", problem, list(VARIANTS)[:5])
    memory_and_errors("memory and errors, beta 0", plain, list(VARIANTS)[:3])
    bench.table("filtered backward by width, beta 0", filtered_widths(plain, forward.statistics(plain), upstream))
    for sort in (True, False):
        say(f"active tiles, beta 0, sort {sort}: {active_share(plain, stats, upstream, sort):.3f}")
    bench.table("forward + backward, beta 0.1, softcap 30", trains(capped, list(VARIANTS)[:3]))
    bench.table("half of the rows ignored", ignored_rows(problem))
    say("done")


if __name__ == "__main__":
    main()
