"""Policies: what the default says, what a rule changes, and what is wrong with a file, by line."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.case import Case
from harness.comparison.policy import Margins, Policy
from harness.comparison.policy_file import load_policy
from harness.yaml_source import InvalidFile

CASE = Case(tokens=8192, hidden_size=2304, vocab_size=256000)
CAPPED = CASE.model_copy(update={"softcap": 30.0})


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    return path


def mistakes(path: Path, names: list[str] | None = None, cases: list[Case] | None = None) -> list[str]:
    with pytest.raises(InvalidFile) as raised:
        load_policy(path, names or [], cases or [])
    return [str(mistake).removeprefix(f"{path}:") for mistake in raised.value.mistakes]


def test_the_shipped_file_is_the_default() -> None:
    shipped, default = load_policy(Path("policies/default.yaml")), load_policy(None)
    assert shipped.name == default.name == "default"
    assert shipped.margins("ours", CASE) == default.margins("ours", CASE) == Margins()


def test_each_key_is_that_of_the_first_rule_that_matches_and_has_it(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """\
name: mine
time_margin: 0.02
rules:
  - {implementation: ours, where: {softcap: 30.0}, time_margin: 0.05, reason: tanh}
  - {implementation: [ours, liger], time_margin: 0.03, must_be_ok: true, reason: what is shipped}
  - {where: {softcap: null}, memory_margin_bytes: 4096, unsure: fail, reason: no softcap}
""",
    )
    policy = load_policy(path)
    assert policy.margins("ours", CAPPED) == Margins(time_margin=0.05, must_be_ok=True)
    assert policy.margins("ours", CASE) == Margins(
        time_margin=0.03, must_be_ok=True, memory_margin_bytes=4096, unsure="fail"
    )
    assert policy.margins("cce", CAPPED) == Margins(time_margin=0.02)


def test_mistakes_have_lines_and_say_what_is_allowed(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """\
name: mine
time_margn: 0.02
unsure: maybe
memory_margin_bytes: 1.5
rules:
  - implementation: ours
    time_margin: 0
  - implementation: ours
    where: {softcp: 30.0}
    reason: r
    time_margin: 0.1
""",
    )
    found = mistakes(path)
    assert found[0].startswith("2: unknown key 'time_margn', did you mean 'time_margin'? (allowed: ")
    assert found[1] == "3: unsure: 'maybe' is none of 'inconclusive', 'pass' or 'fail'"
    assert found[2].startswith("4: memory_margin_bytes: should be a valid integer")
    assert found[3] == "6: missing key 'rules.0.reason'"
    assert found[4].startswith("7: rules.0.time_margin: should be greater than 0")
    assert found[5].startswith("9: unknown key 'rules.1.where.softcp', did you mean 'softcap'?")


def test_rules_that_do_nothing_are_mistakes(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """\
name: mine
rules:
  - {implementation: our, time_margin: 0.1, reason: r}
  - {where: {tokens: 5}, time_margin: 0.1, reason: r}
  - {implementation: ours, reason: r}
""",
    )
    found = mistakes(path, ["ours", "liger"], [CASE])
    assert found[0].startswith("3: rules.0.implementation: 'our' is none of the rows, did you mean 'ours'?")
    assert found[1] == "4: rules.1.where: matches no case"
    assert found[2].startswith("5: rules.2: changes nothing: give it one of time_margin")
    assert len(mistakes(path)) == 1  # without a suite any row and any case will do


def test_the_default_is_independent_of_any_gpu() -> None:
    given = Policy().model_dump()
    assert not [name for name in given if name.endswith(("_ms", "_s", "_mhz", "gpu"))]
