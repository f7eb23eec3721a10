"""What `--only`, `--skip` and `--where` mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import yaml
from pydantic import ValidationError

from harness.suite import Suite, Where
from harness.yaml_source import Source, as_in_a_file, mistakes_of, nearest


class InvalidSelection(ValueError):
    """An option that selects nothing, or something that does not exist; one clear sentence."""


def implementations(suite: Suite, only: Sequence[str], skip: Sequence[str], prefix: str = "--") -> list[str]:
    """Names of the suite's rows that the options keep, in the suite's order.

    Raises InvalidSelection; `prefix` is how the one who is to read it spells options.
    """
    names = [row.name for row in suite.implementations]
    for option, given in ((f"{prefix}only", only), (f"{prefix}skip", skip)):
        for name in given:
            if name not in names:
                hint = f"; repeat {option} for each" if "," in name else nearest(name, names)
                raise InvalidSelection(
                    f"{option} {name}: suite '{suite.name}' has no such implementation{hint} "
                    f"(it has: {', '.join(names)})"
                )
    kept = [name for name in names if (not only or name in only) and name not in skip]
    if not kept:
        raise InvalidSelection(f"{prefix}only and {prefix}skip leave no implementation of suite '{suite.name}'")
    return kept


def condition(expressions: Sequence[str]) -> Where:
    """The condition that `KEY=VALUE[|VALUE...]` expressions say together. Raises InvalidSelection."""
    keys = list(Where.model_fields)
    values: dict[str, object] = {}
    for expression in expressions:
        key, separator, alternatives = expression.partition("=")
        if not separator or key not in keys:
            raise InvalidSelection(
                f"--where {expression}: must be KEY=VALUE or KEY=VALUE|VALUE with a KEY of {', '.join(keys)}"
                f"{nearest(key, keys) if key not in keys else ''}"
            )
        if key in values:
            raise InvalidSelection(f"--where {expression}: {key} is given twice; put | between its values")
        values[key] = [_value(expression, text.strip()) for text in alternatives.split("|")]
    return matching(values, "--where")


def matching(values: Mapping[str, object], option: str = "where") -> Where:
    """The condition that keys and values, written as in a suite, say together. Raises InvalidSelection."""
    source = Source(option, as_in_a_file(values))
    try:
        return Where.model_validate(source.data)
    except ValidationError as error:
        mistakes = mistakes_of(error, source, Where)
        raise InvalidSelection("; ".join(f"{option} {m.message}" for m in mistakes)) from error


def _value(expression: str, text: str) -> object:
    if not text:
        raise InvalidSelection(
            f"--where {expression}: needs a value{' on both sides of |' if '|' in expression else ''}"
        )
    try:
        return None if text == "none" else yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidSelection(f"--where {expression}: {text!r} is no YAML value") from error
