"""What a YAML file is of, told by keys that only its kind has, so that one given to another command is sent on."""

from __future__ import annotations

from typing import Literal

from harness.yaml_source import InvalidFile, Mistake, Source

Kind = Literal["suite", "training", "policy"]
_OWN_KEYS: dict[Kind, set[str]] = {
    "suite": {"implementations"},
    "training": {"model", "training"},
    "policy": {"time_margin", "time_margin_across", "memory_margin_bytes", "excess_margin", "unsure"},
}
_COMMANDS: dict[Kind, str] = {"suite": "run", "training": "train", "policy": "policy"}


def check_kind(source: Source, wanted: Kind) -> None:
    """Raises InvalidFile for a file that has keys of one other kind alone; says nothing of whether it is valid."""
    found = [kind for kind, keys in _OWN_KEYS.items() if keys & source.data.keys()]
    if len(found) == 1 and found[0] != wanted:
        kind = found[0]
        words = f"is a {kind}, not a {wanted}; what reads it: python -m harness {_COMMANDS[kind]} {source.file}"
        raise InvalidFile([Mistake(source.file, None, words)])
