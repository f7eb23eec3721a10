"""The head of a report: what ran, where and with what, and how many rows are ok."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pydantic import JsonValue

from harness.analysis.footnotes import status_words
from harness.analysis.formats import counted
from harness.analysis.gpu_state import gpu_state
from harness.record import Provenance, Record, Status

_UNLESS_NAMED = (
    "Unless a heading names it: no softcap, no ignored rows, reduction mean, no linear bias, seed 0. "
    "N tokens, D hidden size, V vocabulary size, β label smoothing; E the input, C the classifier."
)

_FIRST = ("torch", "triton", "cuda", "driver", "python")  # the versions that explain most; other packages follow


def heading(records: Sequence[Record], coverage: Sequence[str] = ()) -> list[str]:
    """The report's first lines. A run that was resumed elsewhere or later lists every environment it ran in.

    `coverage` is what is known of cases and rows without a record.
    """
    origins = [record.provenance for record in records]
    devices = " and ".join(dict.fromkeys(origin.device_name for origin in origins))
    lines = [f"# {records[0].suite} on {devices}", ""]
    lines += [f"- {line}" for line in dict.fromkeys(f"measured {_when(o)}, {_commit(o)}" for o in origins)]
    lines += [f"- {line}" for line in dict.fromkeys(_versions(origin) for origin in origins) if line]
    lines += [f"- {line}" for line in (*gpu_state(records), *_lead_ins(records), *_counts(records), *coverage)]
    return [*lines, "", _UNLESS_NAMED]


def tally(records: Sequence[Record]) -> str:
    """How rows fared: `3 ok of 5 (1 disagrees, 1 unsupported)`; analytic rows do not count."""
    measured = [record for record in records if not record.analytic]
    counts = Counter(record.status for record in measured)
    ok = counts.pop(Status.OK, 0)
    others = ", ".join(f"{counts[status]} {status_words(status)}" for status in Status if counts[status])
    return f"{ok} ok of {len(measured)}" + (f" ({others})" if others else "")


def _counts(records: Sequence[Record]) -> list[str]:
    cases = len({record.case_id for record in records})
    names = list(dict.fromkeys(record.implementation for record in records))
    lines = [f"{counted(cases, 'case')}: {tally(records)}"]
    missing = cases * len(names) - len(records)
    if missing:
        lines.append(f"incomplete: {counted(missing, 'row')} not measured yet")
    failures = Counter(record.implementation for record in records if not record.as_expected)
    if failures:
        listed = ", ".join(f"{name} ({count})" for name, count in failures.items())
        lines.append(f"**not ok and not expected by the suite: {listed}**")
    elif any(record.status not in (Status.OK, Status.UNSUPPORTED, Status.UNAVAILABLE) for record in records):
        lines.append("every row that failed was expected to, see its footnote")
    return lines


def _lead_ins(records: Sequence[Record]) -> list[str]:
    found = {record.times.lead_in_ms for record in records if record.times is not None}
    return [
        f"before every timed call {lead_in:g} ms of the case's GEMM, untimed" for lead_in in sorted(found) if lead_in
    ]


def _when(origin: Provenance) -> str:
    return f"{origin.started[:16].replace('T', ' ')} UTC"


def _commit(origin: Provenance) -> str:
    if origin.commit is None:
        return "commit unknown"
    return f"commit {origin.commit[:10]}" + (" with uncommitted changes" if origin.dirty else "")


def _versions(origin: Provenance) -> str:
    """`torch 2.13.0, triton 3.7.0, driver 570.86, liger-kernel 0.8.5`: whatever the environment names of them."""
    environment = origin.environment
    packages, gpu = (_mapping(environment.get(name)) for name in ("packages", "gpu"))
    found = packages | gpu | environment
    names = dict.fromkeys([*_FIRST, *sorted(packages)])
    return ", ".join(f"{name} {found[name]}" for name in names if isinstance(found.get(name), str))


def _mapping(value: JsonValue) -> dict[str, JsonValue]:
    return value if isinstance(value, dict) else {}
