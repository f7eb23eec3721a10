"""What two runs' environments differ in: the reasons not to compare their times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from pydantic import JsonValue

from harness.analysis.formats import percent
from harness.record import Provenance, Record

_CLOCK_MARGIN = 0.05  # between medians of SM clocks while the GEMM was timed; two runs on one H200 are 1 to 3 % apart
_GPU = {
    "name": "GPU",
    "driver": "driver",
    "power_limit_w": "power limit (W)",
    "max_sm_clock_mhz": "highest SM clock (MHz)",
    "max_memory_clock_mhz": "highest memory clock (MHz)",
    "multiprocessors": "multiprocessors",
}
_WHICH_DEVICE = "VISIBLE_DEVICES"  # the end of variables that choose a GPU and change no kernel


def unlike(base: Sequence[Record], head: Sequence[Record]) -> list[str]:
    """Each difference in words, `torch: 2.11.0 against 2.13.0`; empty where times may be compared."""
    facts = [_facts(records) for records in (base, head)]
    names = list(dict.fromkeys([*facts[0], *facts[1]]))
    nothing: dict[str, None] = {"none": None}
    found = [
        f"{name}: {_listed(ours)} against {_listed(theirs)}"
        for name in names
        if (ours := facts[0].get(name, nothing)).keys() != (theirs := facts[1].get(name, nothing)).keys()
    ]
    return [*found, *_clocks(base, head), *_inputs(base, head)]


def described(origin: Provenance) -> dict[str, str]:
    """GPU, versions and kernel variables of one record, by the names that `unlike` uses."""
    environment = origin.environment
    packages, variables, gpu = (_mapping(environment.get(key)) for key in ("packages", "variables", "gpu"))
    found = {"device": origin.device_name} if not gpu else {}
    found |= {words: str(gpu[key]) for key, words in _GPU.items() if gpu.get(key) is not None}
    found |= {name: str(environment[name]) for name in ("cuda", "python") if environment.get(name) is not None}
    found |= {name: str(version) for name, version in packages.items() if version is not None}
    return found | {k: str(v) for k, v in variables.items() if not k.endswith(_WHICH_DEVICE)}


def _facts(records: Sequence[Record]) -> dict[str, dict[str, None]]:
    """Every value of each fact: a run that was resumed elsewhere has several."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        own = {"suite": record.suite, "reference": record.reference, "max_excess": f"{record.max_excess:g}"}
        if record.times is not None:
            own["lead-in (ms)"] = f"{record.times.lead_in_ms:g}"
        for name, value in (described(record.provenance) | own).items():
            found.setdefault(name, {}).setdefault(value)
    return found


def _clocks(base: Sequence[Record], head: Sequence[Record]) -> Iterator[str]:
    """SM clocks while the GEMM was timed: of the same work, in common cases."""
    common = {r.case_id for r in base} & {r.case_id for r in head}
    clocks = [
        [clock for r in records if r.case_id in common and r.probes is not None for clock in r.probes.sm_clock_mhz]
        for records in (base, head)
    ]
    if all(clocks):
        first, second = (median(found) for found in clocks)
        if abs(second / first - 1) > _CLOCK_MARGIN:
            apart = percent(abs(second / first - 1))
            yield f"SM clock during the GEMM: {first:.0f} against {second:.0f} MHz, {apart} apart"


def _inputs(base: Sequence[Record], head: Sequence[Record]) -> Iterator[str]:
    """Seeds: cases that are the same but for them, and cases whose tensors were not."""
    drawn = [{r.case_id: r.input_checksum for r in records if r.input_checksum} for records in (base, head)]
    for case_id in drawn[0].keys() & drawn[1].keys():
        if drawn[0][case_id] != drawn[1][case_id]:
            yield f"tensors of {case_id}: checksum {drawn[0][case_id]} against {drawn[1][case_id]}"
    seeds = [{r.case.model_copy(update={"seed": 0}).id: r.case.seed for r in records} for records in (base, head)]
    apart = {(seeds[0][k], seeds[1][k]) for k in seeds[0].keys() & seeds[1].keys() if seeds[0][k] != seeds[1][k]}
    yield from (f"seed: {first} against {second}, so no case is common" for first, second in sorted(apart))


def _listed(values: dict[str, None]) -> str:
    return " and ".join(values)


def _mapping(value: JsonValue) -> dict[str, JsonValue]:
    return value if isinstance(value, dict) else {}
