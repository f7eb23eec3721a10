"""What may be asked of the tail-corrected gradient."""

from dataclasses import dataclass

import torch

COHERENCE = 0.05  # share in which errors of a class by different tokens agree in direction
SAMPLED_ROWS = 16384  # of C, for the first-order term: 16384 D / (N V) of a GEMM
MOST_MODELLED = 0.5  # of the mass: beyond it the tail is no correction but the gradient, as in an untrained model
# Of all pairs, padding included: from here on the dense path is as fast. The gathered products' measured times say 0.33
# for 8192 tokens and D 2304, 0.43 for 32768 tokens and D 768 or 1024.
DENSE_FRACTION = 0.3


def default_tolerance(dtype: torch.dtype) -> float:
    """Three eighths of a unit in the last place: 0.003 in bf16, what torch's own roundings add up to."""
    return torch.finfo(dtype).eps * 3 / 8


@dataclass(frozen=True)
class TailMethod:
    """How accurate, and which parts of the method (ablations)."""

    tolerance: float  # relative error of dE and dC to aim at, beside the rounding of their dtype
    tail: bool = True  # False: inactive pairs contribute nothing
    first_order: bool = True
    weight_first_order: bool = True  # with first_order, in dC too
    choose: bool = True  # the dense path where too many pairs are active; False: never
    dense_fraction: float = DENSE_FRACTION
    most_modelled: float = MOST_MODELLED
    threshold: float | None = None  # of every tile, instead of what follows from the tolerance (tests)
    coherence: float = COHERENCE
    sampled_rows: int = SAMPLED_ROWS

    @property
    def turns_weight(self) -> bool:
        """Whether dC has a first-order term, where it may have one."""
        return self.tail and self.first_order and self.weight_first_order
