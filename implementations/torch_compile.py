"""`torch_compile`: `baseline`'s function under `torch.compile`, as one graph with static shapes.

Library: torch alone. Supports every case; on a GPU the generated kernels need triton, on a CPU a C++ compiler.

The compiler fuses softcap, upcast and softmax, so no fp32 copy of the logits is written where it can avoid one; the
(N, V) logits themselves remain. Roundings of the logits to the inputs' dtype may be left out within a fused kernel.
Every new shape, dtype, setting and grad mode compiles anew (seconds to half a minute). torch stops with an error after
`torch._dynamo.config.recompile_limit` (8) variants in one process, so `build` forgets those of earlier cases.
"""

from __future__ import annotations

from typing import cast

import torch

from implementations.baseline import eager_loss
from implementations.contract import Implementation, LossFunction


def build() -> LossFunction:
    torch.compiler.reset()  # a process that goes on to another case must not turn to dynamic shapes or hit the limit
    # fullgraph: a graph break would measure something between eager and compiled, and not say so
    return cast(LossFunction, torch.compile(eager_loss, dynamic=False, fullgraph=True))


torch_compile = Implementation(build=build)
