"""How the vocabulary is cut for the backward, and where each slice's scratch lives.

The scratch of a slice is its dz, N * width elements, and, where classes are sorted, a packed copy of its rows of C,
width * D. As long as dC has enough unwritten rows behind the slice, the scratch lives in them: slices are written in
order, so those rows are free until their own turn, and wide slices cost no memory. Only the last slices, and a
backward that writes no dC, need a spare buffer.

    |<--- dC rows written --->|<- slice ->|            free            |<---- dz, packed C ---->|
"""

from dataclasses import dataclass

from torch import Tensor

from kernels.linear_cross_entropy.config import SPARE_BYTES
from kernels.linear_cross_entropy.problem import Problem

ALIGNMENT = 64  # elements: every row of dz starts on 128 bytes (fp16 and bf16), as the copy engine likes
GRAIN = 256  # classes: the widest logits tile, so that only the last slice can have a ragged one


@dataclass(frozen=True)
class Slice:
    """Classes start..stop. `offset`: element of dC at which the scratch starts, None for the spare buffer."""

    start: int
    stop: int
    offset: int | None

    @property
    def width(self) -> int:
        return self.stop - self.start


def row_stride(width: int) -> int:
    """Elements from one row of a scratch matrix to the next."""
    return -(-width // ALIGNMENT) * ALIGNMENT


def scratch_elements(width: int, tokens: int, hidden_size: int, packed: bool) -> int:
    """Of a slice: dz, and the packed rows of C."""
    return tokens * row_stride(width) + (width * row_stride(hidden_size) if packed else 0)


def spare_width(bytes_per_class: int) -> int:
    """Classes whose scratch fits the spare buffer; at least one tile, however many tokens there are."""
    return max(GRAIN, SPARE_BYTES // bytes_per_class // GRAIN * GRAIN)


def even_width(most: int, programs: int) -> int:
    """The widest slice up to `most` that fills whole waves, of the dz tiles and of the dC product alike.

    128 classes a multiprocessor make the rows of dC whole waves of 128-row tiles whatever D is; halves and
    quarters of that waste less than an arbitrary width. Wider than that gains nothing.
    """
    wave = 128 * programs // GRAIN * GRAIN
    choices = [wave // part // GRAIN * GRAIN for part in (1, 2, 4)]
    return next((width for width in choices if 0 < width <= most), max(GRAIN, most // GRAIN * GRAIN))


def plan_slices(
    tokens: int,
    vocab_size: int,
    hidden_size: int,
    itemsize: int,
    *,
    in_place: bool,  # dC exists, and its unwritten rows may hold dz
    programs: int,
    width: int | None = None,  # overrides the choice of width (tests, sweeps)
    packed: bool = False,  # the scratch holds the slice's rows of C as well
) -> list[Slice]:
    """Slices that cover 0..vocab_size in order, each as wide as its place allows."""
    per_class = tokens + (row_stride(hidden_size) if packed else 0)
    spare = spare_width(per_class * itemsize)
    slices: list[Slice] = []
    start = 0
    while start < vocab_size:
        left = vocab_size - start
        # fit rows of dC and then the scratch of fit classes must share what is left of dC.
        fit = (left * hidden_size - ALIGNMENT) // (per_class + hidden_size) // GRAIN * GRAIN if in_place else 0
        most = max(fit, spare)
        stop = start + min(left, most, width or even_width(most, programs))
        if vocab_size - stop < GRAIN and left <= most:  # no slice of its own for a sliver
            stop = vocab_size
        offset = None
        if stop - start <= fit:
            elements = scratch_elements(stop - start, tokens, hidden_size, packed)
            offset = (vocab_size * hidden_size - elements) // ALIGNMENT * ALIGNMENT
        slices.append(Slice(start, stop, offset))
        start = stop
    return slices


class Scratch:
    """Hands out the scratch of each slice: inside dC, or in a spare buffer allocated at its first use."""

    def __init__(
        self, slices: list[Slice], problem: Problem, grad_weight: Tensor | None, *, packed: bool = False
    ) -> None:
        self._tokens, self._hidden_size, self._packed = problem.tokens, problem.hidden_size, packed
        self._weight, self._grad_weight = problem.weight, grad_weight
        outside = [self._elements(piece) for piece in slices if piece.offset is None]
        self._spare_elements = max(outside, default=0)
        self._spare: Tensor | None = None

    def logit_gradient(self, piece: Slice) -> Tensor:  # (N, width), rows row_stride(width) apart
        return _matrix(self._memory(piece), self._tokens, piece.width)

    def packed_weight(self, piece: Slice) -> Tensor:  # (width, D), rows row_stride(D) apart
        memory = self._memory(piece)[self._tokens * row_stride(piece.width) :]
        return _matrix(memory, piece.width, self._hidden_size)

    def _elements(self, piece: Slice) -> int:
        return scratch_elements(piece.width, self._tokens, self._hidden_size, self._packed)

    def _memory(self, piece: Slice) -> Tensor:
        if piece.offset is not None:
            assert self._grad_weight is not None
            return self._grad_weight.view(-1)[piece.offset :][: self._elements(piece)]
        if self._spare is None:
            self._spare = self._weight.new_empty(self._spare_elements)
        return self._spare[: self._elements(piece)]


def _matrix(memory: Tensor, rows: int, cols: int) -> Tensor:
    stride = row_stride(cols)
    return memory[: rows * stride].view(rows, stride)[:, :cols]
