"""Names that suites use, and where their implementations live. Imports no library and no torch.

`LOWER_BOUND` is a row computed from the case alone (see `harness.cost`); it runs nothing. A suite adds one of its own
with `path: pkg.mod:obj`, without an entry here.
"""

from __future__ import annotations

import importlib

from implementations.contract import Implementation, as_implementation

LOWER_BOUND = "lower-bound"

REGISTRY: dict[str, str] = {
    "ours": "implementations.ours:auto",
    "ours-corrected": "implementations.ours:corrected",
    "ours-no-sort": "implementations.ours:no_sort",
    "ours-average-logit-sort": "implementations.ours:average_logit_sort",
    "ours-token-groups": "implementations.ours:token_groups",
    "ours-no-tail": "implementations.ours:no_tail",
    "ours-no-first-order": "implementations.ours:no_first_order",
    "ours-exact": "implementations.ours:exact",
    "ours-paper": "implementations.ours:paper",
    "ours-paper-no-sort": "implementations.ours:paper_no_sort",
    "ours-paper-no-filter": "implementations.ours:paper_no_filter",
    "ours-fused": "implementations.ours:fused",
    "ours-fused-no-filter": "implementations.ours:fused_no_filter",
    "baseline": "implementations.baseline:baseline",
    "torch-compile": "implementations.torch_compile:torch_compile",
    "torchtune-chunked": "implementations.torchtune:torchtune_chunked",
    "torchtune-chunked-compiled": "implementations.torchtune:torchtune_chunked_compiled",
    "torch-linear-cross-entropy": "implementations.torch_linear:torch_linear_cross_entropy",
    "liger": "implementations.liger:liger",
    "liger-fp32-accum": "implementations.liger:liger_fp32_accum",
    "liger-cutedsl": "implementations.liger:liger_cutedsl",
    "cce": "implementations.cce:cce",
    "cce-no-sort": "implementations.cce:cce_no_sort",
    "cce-no-filter": "implementations.cce:cce_no_filter",
    "cce-exact": "implementations.cce:cce_exact",
}


def known_names() -> list[str]:
    """Every name a suite may use without a `path`."""
    return [LOWER_BOUND, *REGISTRY]


def load(path: str) -> Implementation:
    """The implementation at `pkg.mod:obj`.

    Raises ValueError if `path` has another form, ImportError if the module cannot be imported, AttributeError if it has
    no such object, TypeError if the object is no implementation.
    """
    module, separator, name = path.partition(":")
    if not (module and separator and name):
        raise ValueError(f"an implementation's path is 'pkg.mod:obj', not {path!r}")
    return as_implementation(getattr(importlib.import_module(module), name))
