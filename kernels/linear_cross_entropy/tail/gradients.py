"""Tail-corrected gradients: few pairs of token and vocabulary tile exactly, the others by products of rank T.

    routing      which pairs matter, from what the forward saw                       routing.py
    tail         dE = M^T centre,  S = M E    M_tn = (g_n + l_n) m_nt, 0 of active   two products, 1/256 GEMM each
    first order  dE += w (E - mean) A,      dC_v += q_v M_t K (C_v - centre_t)       [weight_]first_order.py
    smoothing    dE -= g beta mean_v C_v,     dC_v -= (beta / V) sum_n g_n E_n       rank one
    exact        dE += dz C,  dC = dz^T E + q S                                      active_pairs.py
Sum_v dz_nv stays 0 for every token but for the rounding of M: what the model puts into a tile is the tile's true mass.

The host waits once, for the counts of active pairs, which decide between this and the dense path and size its scratch:
with the tail's products queued behind, so that the GPU does not.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels.linear_cross_entropy import dense
from kernels.linear_cross_entropy.problem import Gradients, Needs, Problem, Statistics
from kernels.linear_cross_entropy.tail.active_pairs import scatter_input_gradient, write_logit_gradient
from kernels.linear_cross_entropy.tail.blocks import Blocks, GatherOptions, gather_options, plan_blocks
from kernels.linear_cross_entropy.tail.certificate import Backward, Certificate
from kernels.linear_cross_entropy.tail.elementwise import less_outer_product
from kernels.linear_cross_entropy.tail.groups import TokenGroups
from kernels.linear_cross_entropy.tail.host_copy import HostCopy
from kernels.linear_cross_entropy.tail.method import TailMethod
from kernels.linear_cross_entropy.tail.model import TailModel
from kernels.linear_cross_entropy.tail.routing import Routing, list_pairs, route
from kernels.linear_cross_entropy.tail.side_stream import Fork
from kernels.linear_cross_entropy.tail.tail_products import TailProducts
from kernels.linear_cross_entropy.tail.tile_statistics import TileStatistics
from kernels.linear_cross_entropy.tail.upstream import upstream
from kernels.linear_cross_entropy.tail.weight_first_order import (
    CovarianceSketch,
    sketch_covariance,
    term_bytes,
    weight_term,
)
from kernels.linear_cross_entropy.tail.weight_gradient import write_weight_gradient

# Of dz at once, beside as much as dE will take, which is not there yet. Few and long launches: tiles have lists of all
# lengths, and every launch ends with its longest. What only a softcap or dC's first-order term needs comes out of it.
GATHER_BYTES, LEAST_GATHER_BYTES = 32 * 2**20, 24 * 2**20


@dataclass(frozen=True)
class TailStats:
    """What a backward did."""

    dense: bool
    padded_fraction: float  # of all pairs: active, lists rounded up to blocks
    modelled_mass: float  # share of the probability, weighted by |g + l|, in inactive pairs
    routing: Routing
    certificate: Certificate | None = None


def gradients(
    problem: Problem,
    statistics: Statistics,
    tiles: TileStatistics,
    model: TailModel,
    target: Tensor,  # (N,) int64: positions in the vocabulary order
    grad_loss: Tensor,  # (N,) fp32; rows that do not count are left out here
    grad_lse: Tensor,  # (N,) fp32, likewise
    needs: Needs,
    method: TailMethod,
    options: GatherOptions | None = None,
    *,
    groups: TokenGroups | None = None,
    certified: bool = False,
) -> tuple[Gradients, TailStats]:
    """dE, dC and db of sum(grad_loss * loss + grad_lse * lse), and what was done for them."""
    options = options or gather_options(problem.tokens)
    rows = options.rows
    C = problem.weight
    given = upstream(problem, statistics, grad_loss, grad_lse)
    routing = route(problem, statistics, tiles, model, target, given, method, rows)
    ends, fork = HostCopy(routing.first_block), Fork(C.device)
    products = TailProducts(problem, model, groups, routing, method)
    accumulator = products.input_gradient(given.loss) if needs.input else None
    pulls = products.pulls(given.loss, bias=needs.bias) if needs.weight or needs.bias else None
    with_first_order = certified and needs.input and method.tail and method.first_order
    term = products.first_order_term() if with_first_order else None
    del products
    wanted = needs.weight and groups is None and problem.softcap == 0 and method.turns_weight
    sketch = _sketch_beside(fork, problem, model, routing.tail) if wanted else None
    *first_block, share = ends.wait().tolist()
    total, pairs = first_block[-1], problem.tokens * model.tiles
    dense_path = method.choose and (total * rows > method.dense_fraction * pairs or share > method.most_modelled * 1e6)
    # From here on the GPU may have nothing left to do, so what it can do at once is launched first: the lists before
    # the wait for K, and dz and dE of the first tiles before dC's term.
    if not dense_path:
        tokens, tile_of_block = list_pairs(problem, statistics, tiles, model, target, given, routing, total, rows)
    covariance = sketch.covariance() if sketch else None  # waits for what the side stream reads, on either path
    if not certified:  # N / 256 D of dC, that is not needed any more
        routing = replace(routing, tail=routing.tail.new_empty(0), flat_tail=None)
    stats = TailStats(dense_path, total * rows / pairs, share / 1e6, routing)
    if dense_path:
        del accumulator, pulls
        return dense.gradients(problem, statistics, given.loss, given.p_scale - given.loss, needs), stats
    grad_weight = torch.empty(C.shape, dtype=C.dtype, device=C.device) if needs.weight else None
    grad_bias = torch.empty(len(C), dtype=C.dtype, device=C.device) if needs.bias else None
    of_softcap = (tiles.mass_slope, tiles.mean_slope, model.flat_centre, pulls.flat if pulls else None)
    taken = sum(t.nbytes for t in of_softcap if t is not None) + term_bytes(problem, covariance)
    slices = _slices(problem, model, first_block, rows, taken)
    most = max(size for *_, size in slices)
    dz_memory = torch.empty(most * rows, model.tile_classes, dtype=C.dtype, device=C.device)
    in_weight = None
    for start, stop, size in slices:
        done = first_block[start]
        blocks = Blocks(
            tokens[done * rows : (done + size) * rows], tile_of_block[done : done + size], routing.first_block, done,
            start, stop - start, size,
        )  # fmt: skip
        dz = dz_memory[: size * rows]
        if size:
            write_logit_gradient(problem, statistics, model, target, given, blocks, dz, options)
            if accumulator is not None:
                scatter_input_gradient(problem, model, blocks, dz, accumulator, options)
        if pulls is not None:
            if in_weight is None and covariance is not None:
                in_weight = weight_term(problem, model, covariance, pulls.mass[:, 0])
            write_weight_gradient(problem, model, blocks, dz, pulls, grad_weight, grad_bias, options, in_weight)
    of_term = None if in_weight is None else (in_weight.covariance, in_weight.masses)
    del dz_memory, dz, pulls, in_weight
    result = Gradients(_finished(problem, model, given.loss, accumulator), grad_weight, grad_bias)
    if not certified or not method.tail:  # without a tail there is nothing to bound the error with
        return result, stats
    backward = Backward(problem, statistics, tiles, model, groups, routing, target, given, term, of_term, result)
    return result, replace(stats, certificate=backward.certificate())


def _sketch_beside(fork: Fork, problem: Problem, model: TailModel, tail: Tensor) -> CovarianceSketch:
    with fork.beside():
        return sketch_covariance(problem, model, tail)


def _slices(
    problem: Problem, model: TailModel, first_block: list[int], rows: int, taken: int
) -> list[tuple[int, int, int]]:
    """First tile, tile after the last, and blocks of what is computed at once; `taken`: bytes used besides."""
    scratch = max(GATHER_BYTES + problem.input.nbytes - taken, LEAST_GATHER_BYTES)
    ranges = plan_blocks(first_block, scratch // (rows * model.tile_classes * problem.weight.element_size()))
    return [(start, stop, first_block[stop] - first_block[start]) for start, stop in ranges]


def _finished(problem: Problem, model: TailModel, grad_loss: Tensor, accumulator: Tensor | None) -> Tensor | None:
    """dE with the rank-one smoothing, in fp32 until here."""
    if accumulator is None or model.class_sum is None:
        return None if accumulator is None else accumulator.to(problem.input.dtype)
    share = model.class_sum * (problem.label_smoothing / problem.vocab_size)
    return less_outer_product(accumulator, grad_loss, share, problem.input.dtype)
