"""What an agreement says beyond its errors: diagnostics that explain them, and checks that need no oracle.

Every field is optional where it enters a record, so that records from before it still load.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Diagnostics(_Frozen):
    """How gradients are off, not only how far. None where nothing is to be compared. Missing rows alone are judged.

    slope: sum(g * g64) / sum(g64**2); 1 - slope is the part of the error that is lost or gained systematically.
    decile_errors: norm(g - g64) / norm(g64) over the tenth of the elements with the smallest |g64|, the next, ... the
    largest; on an even sample of a large gradient.
    cold rows: rows of grad_weight that are never a target. Most rows are, and the norm of the whole does not see them;
    an optimizer that normalises each coordinate does.
    missing rows are all zero although the true row has an element far above the dtype's underflow (2**20 times its
    smallest normal number, for fp16 that itself) and, for grad_input, above 2**-10 of the median row's: a tile, or a
    token, that was forgotten. Where such rows are rare ones the norm of the whole hides them. More of them than eager
    has disagree.
    adamw_step_error: norm(u - u64) / norm(u64) of the first AdamW step on linear_weight, u = g / (|g| + 1e-8).
    """

    grad_input_slope: float | None = None
    grad_weight_slope: float | None = None
    grad_input_decile_errors: list[float] = []
    grad_weight_decile_errors: list[float] = []
    grad_input_missing_rows: int = 0
    grad_weight_missing_rows: int = 0
    cold_rows: int = 0  # that were compared and whose true gradient is not zero
    cold_row_error_median: float | None = None
    cold_row_error_p99: float | None = None
    adamw_step_error: float | None = None


class Check(_Frozen):
    """A property that a right loss has whatever its values are; where it compares several tensors, the worst of them.

    deviation: scale-free, 0 for exact arithmetic. limit: beyond it the implementation disagrees.
    """

    of: str  # the tensor with the largest deviation in units of its limit
    deviation: float | None  # None: not finite
    limit: float


class Checks(_Frozen):
    """The checks that were made; one that does not apply to the case (a softcap breaks two of them) is absent."""

    mass: Check | None = None  # norm(sum_v dC_v) / sum_v norm(dC_v)
    linearity: Check | None = None  # gradients of other upstream gradients against multiples of the first
    permutation: Check | None = None  # of the vocabulary: the gradients permuted likewise
    shift: Check | None = None  # of a token's logits by a constant: loss and gradients stay
    repeat: Check | None = None  # the same call again, on memory that was poisoned with nan
    repeats_bitwise: bool | None = None
    claims_determinism: bool = False
    poisoned_bytes: int | None = None  # fresh memory that held nan before the judged call; None: all of it (CPU)
    straggling_ms: float | None = None  # work of a call still running when its own stream was done
