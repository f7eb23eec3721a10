"""Measures large-vocabulary loss implementations: time, peak memory, agreement. `python -m harness --help`.

As a library: `run_suite`, `load_records`, `compare`, `to_frame` and what they return and raise, described in
docs/library.md. They are imported when they are first used, so that `import harness` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "Record",
    "ReplayTimer",
    "Run",
    "Status",
    "UnfitEnvironment",
    "compare",
    "load_records",
    "run_suite",
    "to_frame",
]

if TYPE_CHECKING:
    from harness.library import Run, compare, load_records, run_suite, to_frame
    from harness.record import Record, Status
    from harness.replay import ReplayTimer
    from harness.running.runs import UnfitEnvironment

# The public names and where each lives. A new one has a line here, one in __all__ and one above. It cannot be called as
# a module of this package is: whoever imports that module would put it in the name's place.
_HOMES = {
    "Record": "harness.record",
    "ReplayTimer": "harness.replay",
    "Run": "harness.library",
    "Status": "harness.record",
    "UnfitEnvironment": "harness.running.runs",
    "compare": "harness.library",
    "load_records": "harness.library",
    "run_suite": "harness.library",
    "to_frame": "harness.library",
}


if not TYPE_CHECKING:  # or a type checker would believe in every name

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module 'harness' has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
