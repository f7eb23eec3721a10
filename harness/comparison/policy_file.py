"""Policy files: from YAML to a `Policy`, or to every mistake with its line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from harness.case import Case
from harness.comparison.policy import Margins, Policy
from harness.file_kind import check_kind
from harness.yaml_source import InvalidFile, Mistake, Source, mistakes_of, nearest, read_yaml


def load_policy(path: Path | None, names: Sequence[str] = (), cases: Sequence[Case] = ()) -> Policy:
    """The policy in `path`, the default one for None. Raises InvalidFile with the mistakes in it, each with its line.

    `names` and `cases` are what it will be applied to: a rule that matches none of them is a mistake. Where they are
    not known yet they are empty, and any will do.
    """
    if path is None:
        return Policy()
    source = read_yaml(path)
    try:
        policy = Policy.model_validate(source.data)
    except ValidationError as error:
        check_kind(source, "policy")
        raise InvalidFile(mistakes_of(error, source, Policy)) from error
    mistakes = list(_idle_rules(policy, source, names, cases))
    if mistakes:
        raise InvalidFile(mistakes)
    return policy


def _idle_rules(policy: Policy, source: Source, names: Sequence[str], cases: Sequence[Case]) -> Iterator[Mistake]:
    for position, rule in enumerate(policy.rules):
        if all(getattr(rule, key) is None for key in Margins.model_fields):
            allowed = ", ".join(Margins.model_fields)
            yield source.mistake(("rules", position), f"changes nothing: give it one of {allowed}")
        for name in rule.implementation or []:
            if names and name not in names:
                message = f"'{name}' is none of the rows{nearest(name, names)} (they are: {', '.join(names)})"
                yield source.mistake(("rules", position, "implementation"), message)
        if cases and not any(rule.where.matches(case) for case in cases):
            yield source.mistake(("rules", position, "where"), "matches no case")
