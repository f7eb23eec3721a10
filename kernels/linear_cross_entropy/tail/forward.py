"""The two halves of a step: a forward that remembers tiles, a backward that reads what it kept.

Packs ignored rows away as engine.py does. What is kept of every tile is flat memory of T * N numbers whatever is
packed: an operator's shapes may not depend on its inputs' values.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from kernels.linear_cross_entropy.config import Tile, capturing, tail_tile
from kernels.linear_cross_entropy.engine import gradients as exact_gradients
from kernels.linear_cross_entropy.engine import kept_rows, packing_pays
from kernels.linear_cross_entropy.problem import Gradients, Method, Needs, Problem, Statistics
from kernels.linear_cross_entropy.tail import gradients as steps
from kernels.linear_cross_entropy.tail.groups import BLOCK_N, TokenGroups, group_means, group_tokens
from kernels.linear_cross_entropy.tail.host_copy import HostCopy
from kernels.linear_cross_entropy.tail.method import TailMethod
from kernels.linear_cross_entropy.tail.model import (
    TailModel,
    grouped_model,
    tail_model,
    typical_token,
    with_relative_spread,
)
from kernels.linear_cross_entropy.tail.report import REPORT_LENGTH, make_report
from kernels.linear_cross_entropy.tail.tile_statistics import TileStatistics, positions, tile_statistics


def remember(
    problem: Problem, pack: bool, order: Tensor | None, centres: Tensor | None, tile_classes: int
) -> tuple[Statistics, int | None, tuple[Tensor, ...]]:
    """Statistics of every token, how many take part where ignored rows were left out, the tensors of operators.KEPT."""
    N, device = problem.tokens, problem.input.device
    tile = tail_tile(tile_classes)
    problem = replace(problem, input=_aligned(problem.input, tile), weight=_aligned(problem.weight, tile))
    with on_device(device):
        pack = pack and not capturing(device)
        number = HostCopy((problem.target != problem.ignore_index).sum()) if pack else None
        if centres is None:  # while the number is on its way
            model = tail_model(problem, typical_token(problem), order, tile_classes)
        kept = N if number is None else int(number.wait())
        rows, part = None, problem
        if kept > 0 and packing_pays(kept, N):
            rows = kept_rows(problem, kept)
            part = problem.rows(rows)
        groups = None
        if centres is not None:
            places, groups = group_tokens(part.input, centres)
            rows = places if rows is None else rows[places]
            part = problem.rows(rows)
            # of the groups' means, not of the centres, which may be of other tokens long ago
            model = grouped_model(part, group_means(part, groups), order, tile_classes)
        target = positions(part, order)
        room = _empty_statistics(problem, model.tiles)
        tiles = _view(room, model.tiles, part.tokens)
        statistics = tile_statistics(part, model, target, tile, tiles, groups)
        model = with_relative_spread(model)
    if rows is not None:
        statistics = statistics.placed(rows, N)
    integers = lambda count: torch.empty(count, dtype=torch.int64, device=device)  # noqa: E731
    place, permutation = integers(0 if order is None else N), integers(0 if groups is None else N)
    of_block = torch.empty(0 if groups is None else -(-N // BLOCK_N), dtype=torch.int32, device=device)
    if order is not None:
        place[: part.tokens] = target
    if groups is not None:
        assert rows is not None
        permutation[: part.tokens], of_block[: len(groups.of_block)] = rows, groups.of_block
    assert model.relative_spread is not None
    optional = (model.class_sum, model.flat_shape, model.flat_centre)
    of_model = (model.typical, model.shape, model.shape_square, model.centre, model.spread, model.relative_spread)
    kept_part = None if part.tokens == N else part.tokens
    return statistics, kept_part, (
        *room, place, permutation, of_block, *of_model,
        *(problem.input.new_empty(0) if t is None else t for t in optional),
    )  # fmt: skip


def gradients(
    problem: Problem,
    statistics: Statistics,
    remembered: tuple[Tensor, ...],  # operators.KEPT
    grad_loss: Tensor,  # (N,)
    grad_lse: Tensor,  # (N,)
    needs: Needs,
    method: TailMethod,
    kept: int | None,
    order: Tensor | None,
    tile_classes: int,
    *,
    certify: bool,
) -> tuple[Gradients, Tensor]:
    """dE, dC and db of sum(grad_loss * loss + grad_lse * lse) over the rows that count; and a report (report.py)."""
    if capturing(problem.input.device):  # a compiled model's CUDA graph: the exact path, which asks the host nothing
        result = exact_gradients(problem, statistics, grad_loss, grad_lse, needs, Method(), None)
        return result, torch.full((REPORT_LENGTH,), float("nan"), dtype=torch.float64)
    place, permutation, of_block = remembered[4:7]
    rows, part, groups = None, problem, None
    if permutation.numel():
        rows = permutation[:kept]
        groups = TokenGroups(of_block[: -(-len(rows) // BLOCK_N)], remembered[7].shape[0])
    elif kept is not None:
        rows = kept_rows(problem, kept)
    if rows is not None:
        part, statistics = problem.rows(rows), statistics.rows(rows)
        grad_loss, grad_lse = grad_loss[rows], grad_lse[rows]
    model, tiles = recalled(remembered, part.tokens, order, tile_classes)
    target = part.target if order is None else place[: part.tokens]
    with on_device(problem.input.device):
        result, stats = steps.gradients(
            part,
            statistics,
            tiles,
            model,
            target,
            grad_loss,
            grad_lse,
            needs,
            method,
            groups=groups,
            certified=certify,
        )
        report = make_report(stats) if certify else torch.full((REPORT_LENGTH,), float("nan"), dtype=torch.float64)
    return result if rows is None else result.placed(rows, problem.tokens), report


def recalled(
    remembered: tuple[Tensor, ...], tokens: int, order: Tensor | None, tile_classes: int
) -> tuple[TailModel, TileStatistics]:
    """What `remember` kept of the head and of `tokens` tokens."""
    typical, shape, shape_square, centre, spread, relative_spread, *optional = remembered[7:]
    model = TailModel(
        tile_classes, typical, order, shape, shape_square, centre, spread,
        *(t if t.numel() else None for t in optional), relative_spread,
    )  # fmt: skip
    return model, _view(remembered[:4], model.tiles, tokens)


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _aligned(matrix: Tensor, tile: Tile) -> Tensor:
    """A copy, where the copy engine cannot start at the matrix's first byte (a view into something odd)."""
    return matrix.clone() if tile.tma and matrix.data_ptr() % 16 else matrix


def _empty_statistics(problem: Problem, tiles: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    capped, smooth = problem.softcap > 0, problem.label_smoothing > 0
    pairs = tiles * problem.tokens
    return (
        problem.input.new_empty(pairs, dtype=torch.float32),
        problem.input.new_empty(pairs, dtype=torch.bfloat16),
        problem.input.new_empty(pairs if capped else 0, dtype=torch.bfloat16),
        problem.input.new_empty(pairs if capped and smooth else 0, dtype=torch.bfloat16),
    )


def _view(memory: tuple[Tensor, ...], tiles: int, tokens: int) -> TileStatistics:
    views = (t[: tiles * tokens].view(tiles, tokens) if t.numel() else None for t in memory)
    return TileStatistics(*views)  # type: ignore[arg-type] # the first two always exist
