"""What a directory's plan.json plans: the run of a suite, or a training. Told by its keys, whatever its version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

PLAN_FILE = "plan.json"
Kind = Literal["suite", "training"]
_OWN_KEY: dict[Kind, str] = {"suite": "suite", "training": "config"}


def kind_of(run: Path) -> Kind | None:
    """None for a directory without a plan, and for a plan that is neither's."""
    try:
        plan = json.loads((run / PLAN_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    found = [kind for kind, key in _OWN_KEY.items() if isinstance(plan, dict) and key in plan]
    return found[0] if len(found) == 1 else None


def taken_for(run: Path, wanted: Kind) -> str | None:
    """Where `run` is of the other kind than `wanted`: a sentence that says so and names what reads it; else None."""
    found = kind_of(run)
    if found is None or found == wanted:
        return None
    if found == "training":
        return (
            f"{run} holds a training run, whose report is {run / 'report.md'}; what is left of it is trained, and the "
            f"report written, by: python -m harness train --resume {run}"
        )
    return (
        f"{run} holds the run of a suite, not a training, and is read by: python -m harness report {run}; what is left "
        f"of it is measured by: python -m harness run --resume {run}"
    )
