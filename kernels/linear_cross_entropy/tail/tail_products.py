"""The modelled part of the gradients, as products of rank T: what inactive pairs add to dE, dC and db."""

import torch
from torch import Tensor

from kernels.linear_cross_entropy.column_sum import column_sum
from kernels.linear_cross_entropy.problem import Problem
from kernels.linear_cross_entropy.products import add_product
from kernels.linear_cross_entropy.tail.first_order import add_first_order
from kernels.linear_cross_entropy.tail.groups import TokenGroups, grouped_input, grouped_pull
from kernels.linear_cross_entropy.tail.method import TailMethod
from kernels.linear_cross_entropy.tail.model import TailModel
from kernels.linear_cross_entropy.tail.routing import Routing
from kernels.linear_cross_entropy.tail.weight_gradient import Pulls


class TailProducts:
    """Of one backward; in the routing's unit until they are asked for."""

    def __init__(
        self, problem: Problem, model: TailModel, groups: TokenGroups | None, routing: Routing, method: TailMethod
    ) -> None:
        self._problem, self._model, self._groups = problem, model, groups
        self._routing, self._method = routing, method
        E, tail = problem.input, routing.tail
        if groups is None:
            pull = torch.empty((model.tiles, problem.hidden_size), dtype=torch.float32, device=E.device)
            add_product(pull, tail, E, first=True)
            self._pull = pull[:, None]  # (T, K, D)
            self._mass, self._weight = routing.tail_mass[:, None], routing.tail_weight[:, None]  # (T, K)
        else:
            self._pull, self._mass, self._weight = grouped_pull(tail, E, groups)

    def input_gradient(self, grad_loss: Tensor) -> Tensor:  # (N, D) fp32
        """dE without its active pairs, and without smoothing where that is of rank one. grad_loss (N,)."""
        problem, model, routing = self._problem, self._model, self._routing
        if not self._method.tail:
            accumulator = torch.zeros(problem.input.shape, dtype=torch.float32, device=grad_loss.device)
        elif self._groups is None:
            accumulator = torch.empty(problem.input.shape, dtype=torch.float32, device=grad_loss.device)
            add_product(accumulator, routing.tail.t(), model.centre[0], first=True)
        else:
            accumulator = grouped_input(routing.tail, model.centre, self._groups)
        if self._method.tail and self._method.first_order:
            self._add_first_order(accumulator)
        if routing.flat_tail is not None:
            assert model.flat_centre is not None
            add_product(accumulator, routing.flat_tail.t(), model.flat_centre * -self._flat_share, first=False)
        if routing.unit is not None:
            accumulator *= routing.unit
        return accumulator

    def first_order_term(self) -> Tensor:  # (N, D) fp32
        """What the first-order term alone adds to dE."""
        term = torch.zeros(self._problem.input.shape, dtype=torch.float32, device=self._problem.input.device)
        self._add_first_order(term)
        return term if self._routing.unit is None else term * self._routing.unit

    def pulls(self, grad_loss: Tensor, *, bias: bool) -> Pulls:
        """What the tail and smoothing add to dC and, with `bias`, to db. grad_loss (N,)."""
        problem, routing = self._problem, self._routing
        unit = 1.0 if routing.unit is None else routing.unit
        flat_pull, flat_mass = None, None
        if routing.flat_tail is not None:
            flat_pull = torch.empty(self._pull.shape[::2], dtype=torch.float32, device=grad_loss.device)
            add_product(flat_pull, routing.flat_tail, problem.input, first=True)
            flat_pull *= unit * self._flat_share
            flat_mass = routing.flat_tail.sum(dim=1, dtype=torch.float32) * (unit * self._flat_share)
        pull, mass = self._pull, self._mass
        if routing.unit is not None or not self._method.tail:
            factor = unit if self._method.tail else 0.0
            pull, mass = pull * factor, mass * factor
        rank_one = problem.label_smoothing / problem.vocab_size if problem.softcap == 0 else 0.0
        shift = torch.zeros(problem.hidden_size, device=grad_loss.device)
        if rank_one:
            shift = column_sum(problem.input, grad_loss) * rank_one
        bias_shift = grad_loss.sum() * rank_one if bias else None
        return Pulls(pull, shift, flat_pull, mass, bias_shift, flat_mass)

    @property
    def _flat_share(self) -> float:
        return self._problem.label_smoothing / self._problem.vocab_size * self._model.tile_classes

    def _add_first_order(self, accumulator: Tensor) -> None:
        token_mass = self._routing.tail.sum(dim=0, dtype=torch.float32)
        add_first_order(
            self._problem, self._model, token_mass, self._weight, self._groups, accumulator,
            self._method.sampled_rows,
        )  # fmt: skip
