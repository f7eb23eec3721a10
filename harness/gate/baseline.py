"""A baseline: what rows came to on some GPU with some versions, as a file that is kept beside the code and reviewed.

Times are ratios to the GEMM of the same rounds, never milliseconds. Written sorted and with four digits, a row's time,
memory and excesses on a line each, so that a diff shows what changed and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError

from harness.analysis.statistics.bootstrap import Interval
from harness.atomic import new_file
from harness.case import DATA
from harness.comparison.across import ratios_to_yardstick
from harness.comparison.comparison import Comparison, NothingToCompare, code_of, compared, device_of
from harness.comparison.environment import described
from harness.comparison.policy import Policy
from harness.comparison.ratio import TimeRatio, is_timed, quotient, without_ratio
from harness.comparison.row import RowComparison
from harness.comparison.side import Side, excess_of, memory_of, side_of
from harness.record import COMPLETED, Record, Status
from harness.yaml_source import InvalidFile, mistakes_of, read_yaml

_HEADER = """\
# Ratios to the GEMM (fwd+bwd: ratio, 95 % interval, rounds), peaks in bytes, excesses, by GPU and versions.
# Written by: python -m harness gate RUN --baseline THIS --update-baseline
"""
_NOT_IN_KEY = frozenset({"python", "numpy", "pydantic"})  # compute nothing that is measured
# a limit or a clock that somebody set moves a GEMM and a row by different shares; `unlike` refuses two runs for it too
_KEY = ("GPU", "device", "driver", "cuda", "power limit (W)", "highest SM clock (MHz)", "highest memory clock (MHz)")
_DIGITS = 4


class StoredRow(BaseModel):
    """What a row came to."""

    model_config = DATA

    status: Annotated[Status, Field(strict=False)]
    gemms: Annotated[list[float], Field(min_length=4, max_length=4)] | None = None  # estimate, low, high, rounds
    memory: dict[str, int] = {}  # bytes, by column of Memory
    excess: dict[str, float] = {}  # by gradient

    @property
    def interval(self) -> Interval | None:
        if self.gemms is None:
            return None
        estimate, low, high, rounds = self.gemms
        return Interval(estimate, low, high, int(rounds))


class Entry(BaseModel):
    """Rows by case and name, of one GPU and one set of versions."""

    model_config = DATA

    environment: dict[str, str]
    commit: str
    cases: dict[str, dict[str, StoredRow]]


class Baseline(BaseModel):
    """A baseline file."""

    model_config = DATA

    format: Literal[1] = 1
    entries: list[Entry] = []


class UnfitForBaseline(ValueError):
    """A run that should not become what others are held to; one clear sentence."""


def load_baseline(path: Path) -> Baseline:
    """The baseline in `path`. Raises InvalidFile with the mistakes in it, each with its line."""
    source = read_yaml(path)
    try:
        return Baseline.model_validate(source.data)
    except ValidationError as error:
        raise InvalidFile(mistakes_of(error, source, Baseline)) from error


def write_baseline(path: Path, baseline: Baseline) -> None:
    """Writes it in the one way there is: equal baselines are equal files."""
    entries = sorted(baseline.entries, key=lambda entry: sorted(entry.environment.items()))
    data = {"format": 1, "entries": [entry.model_dump(mode="json", exclude_defaults=True) for entry in entries]}
    text = yaml.safe_dump(data, default_flow_style=None, sort_keys=True, width=10**6, allow_unicode=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as temporary:
        temporary.write_text(_HEADER + text, encoding="utf-8")


def updated(baseline: Baseline, records: Sequence[Record]) -> Baseline:
    """The baseline with the run's rows in place of those of the same environment, case and name.

    Raises UnfitForBaseline if a row failed or disagrees unexpectedly.
    """
    bad = [f"{r.implementation} on {r.case_id} is {r.status}" for r in records if not r.as_expected]
    if bad:
        raise UnfitForBaseline(f"no baseline from a run with rows that the suite does not expect: {'; '.join(bad)}")
    key, ratios = key_of(records), ratios_to_yardstick(records)
    old = next((entry.cases for entry in baseline.entries if entry.environment == key), {})
    cases = {case_id: dict(rows) for case_id, rows in old.items()}
    for record in records:
        if not record.analytic and record.status in COMPLETED:
            gemm = ratios.get((record.case_id, record.implementation), {}).get("GEMM")
            cases.setdefault(record.case_id, {})[record.implementation] = _stored(record, gemm)
    others = [entry for entry in baseline.entries if entry.environment != key]
    return Baseline(entries=[*others, Entry(environment=key, commit=code_of(records), cases=cases)])


def compare_with(baseline: Baseline, records: Sequence[Record], policy: Policy, strict: bool = False) -> Comparison:
    """The run against what is stored for its GPU and versions.

    Where nothing is, against the entry with the fewest differences, which are named: then the comparison is advisory
    unless `strict`. Raises NothingToCompare if no stored row is in the run.
    """
    key = key_of(records)
    if not baseline.entries:
        raise NothingToCompare("the baseline is empty; --update-baseline writes this run into it")
    entry = min(baseline.entries, key=lambda entry: _distance(entry, key))
    different = _apart(entry, key)
    ratios = ratios_to_yardstick(records)
    rows: list[RowComparison] = []
    for record in records:
        if record.analytic:
            continue
        stored = entry.cases.get(record.case_id, {}).get(record.implementation)
        now = ratios.get((record.case_id, record.implementation), {}).get("GEMM")
        before = stored.interval if stored is not None else None
        ratio = TimeRatio(quotient(now, before), paired=False) if now is not None and before is not None else None
        ratio = ratio or without_ratio(before is not None, is_timed(record))
        base = None if stored is None else Side(stored.status, memory=stored.memory, excess=stored.excess)
        device = record.provenance.device
        rows.append(
            compared(
                record.case,
                (record.implementation, record.implementation),
                base,
                side_of(record),
                ratio,
                policy,
                device,
            )
        )
    rows += _gone(entry, records, policy)
    if not any(row.base is not None and row.head is not None for row in rows):
        raise NothingToCompare("nothing to compare: the baseline has no row of this run; --update-baseline adds them")
    advisory = f"nothing is stored for this GPU and these versions ({'; '.join(different)})" if different else None
    return Comparison(
        base=f"stored ratios, {entry.commit}",
        head=code_of(records),
        device=device_of(records),
        policy=policy.name,
        rows=rows,
        unlike=different,
        advisory=None if strict else advisory,
    )


def key_of(records: Sequence[Record]) -> dict[str, str]:
    """GPU with its limits, driver and versions of a run. Raises UnfitForBaseline for a run of several environments."""
    keys = {tuple(_key(record).items()) for record in records}
    if len(keys) != 1:
        raise UnfitForBaseline(f"a baseline is of one environment, the run has {len(keys)}")
    return dict(keys.pop())


def _key(record: Record) -> dict[str, str]:
    facts = described(record.provenance)
    packages = record.provenance.environment.get("packages")
    names = [*_KEY, *sorted(packages if isinstance(packages, dict) else [])]
    return {name: facts[name] for name in names if name in facts and name not in _NOT_IN_KEY}


def _distance(entry: Entry, key: Mapping[str, str]) -> tuple[bool, int]:
    return entry.environment.get("GPU") != key.get("GPU"), len(_apart(entry, key))


def _apart(entry: Entry, key: Mapping[str, str]) -> list[str]:
    names = dict.fromkeys([*entry.environment, *key])
    pairs = [(name, entry.environment.get(name, "none"), key.get(name, "none")) for name in names]
    return [f"{name}: {stored} against {here}" for name, stored, here in pairs if stored != here]


def _gone(entry: Entry, records: Sequence[Record], policy: Policy) -> list[RowComparison]:
    """Stored rows of the run's cases that the run has not."""
    cases = {record.case_id: record.case for record in records}
    measured = {(record.case_id, record.implementation) for record in records}
    return [
        compared(
            case,
            (name, name),
            Side(stored.status, memory=stored.memory, excess=stored.excess),
            None,
            None,
            policy,
            records[0].provenance.device,
        )
        for case_id, case in cases.items()
        for name, stored in entry.cases.get(case_id, {}).items()
        if (case_id, name) not in measured
    ]


def _stored(record: Record, gemm: Interval | None) -> StoredRow:
    figures = [_rounded(gemm.estimate), _rounded(gemm.low), _rounded(gemm.high), gemm.rounds] if gemm else None
    return StoredRow(
        status=record.status,
        gemms=figures,
        memory=memory_of(record.memory),
        excess={name: _rounded(value) for name, value in excess_of(record.agreement).items()},
    )


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
