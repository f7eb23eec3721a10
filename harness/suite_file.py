"""Suite files, and mappings in place of them: from plain data to a `Suite`, or to every mistake with its line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.case import Inputs
from harness.file_kind import check_kind
from harness.input_header import header_mistakes
from harness.suite import OnCpu, Suite, as_list
from harness.yaml_source import InvalidFile, Location, Mistake, Source, mistakes_of, nearest, read_yaml
from implementations.registry import LOWER_BOUND, known_names


def load_suite(path: Path, to_be_run: bool = False) -> Suite:
    """The suite in `path`. Raises InvalidFile with the mistakes in it, each with its line.

    What concerns whole cases is looked at when all else is right; whether the files of inputs are there and fit only
    if the suite is `to_be_run`, for another command may be about to write them.
    """
    shipped = Path("suites", f"{path.stem}.yaml")
    if not path.exists() and shipped.is_file():
        message = f"cannot be read: No such file or directory, did you mean {shipped}?"
        raise InvalidFile([Mistake(str(path), None, message)])
    return suite_of(read_yaml(path), to_be_run)


def suite_of(source: Source, to_be_run: bool = False) -> Suite:
    """The suite in `source`; as `load_suite`."""
    try:
        suite = Suite.model_validate(source.data)
    except ValidationError as error:
        check_kind(source, "suite")
        raise InvalidFile([*mistakes_of(error, source, Suite), *_disagreeing_keys(source)]) from error
    mistakes = list(_disagreeing_keys(source))
    mistakes = mistakes or list(_idle_conditions(suite, source))
    mistakes = mistakes or (list(_unfit_files(suite, source)) if to_be_run else [])
    if mistakes:
        raise InvalidFile(mistakes)
    return suite


def _disagreeing_keys(source: Source) -> Iterator[Mistake]:
    """Keys that must agree with each other; read from the raw data, to be reported beside other mistakes."""
    rows = source.data.get("implementations")
    named = [row.get("name") if isinstance(row, dict) else row for row in rows] if isinstance(rows, list) else []
    names = [name for name in named if isinstance(name, str)]
    unknown = _unknown(rows) if isinstance(rows, list) else []  # the name that is looked for may be what one should be
    for position, name in enumerate(named):
        if name in names and name in named[:position]:
            yield source.mistake(("implementations", position), f"'{name}' is listed twice")
    reference = source.data.get("reference", "baseline")
    for key, name in (("reference", reference), ("twice", source.data.get("twice") or reference)):
        absent = name not in names and not unknown
        if names and (absent or name == LOWER_BOUND) and (key, name) != ("twice", reference):
            why = "runs nothing" if name == LOWER_BOUND else "is not among the implementations"
            yield source.mistake((key,), f"'{name}' {why}{nearest(str(name), names)}")
    device = source.data.get("device", "cuda")
    if source.data.get("on_cpu") is not None and device in ("cuda", "cpu"):
        yield source.mistake(("on_cpu",), f"has no effect with device: {device}; use device: auto")
    expectations = source.data.get("expectations")
    for position, expected in enumerate(expectations if isinstance(expectations, list) else []):
        wanted = expected.get("implementation") if isinstance(expected, dict) else None
        for name in as_list(wanted) if names and wanted else []:
            if name not in names and not nearest(str(name), unknown):
                message = f"'{name}' is not among the implementations{nearest(str(name), names)}"
                yield source.mistake(("expectations", position, "implementation"), message)


def _unknown(rows: list[Any]) -> list[str]:
    """Names of rows that are neither the registry's nor their own; another mistake says so."""
    named = [row.get("name") if isinstance(row, dict) and row.get("path") is None else row for row in rows]
    return [name for name in named if isinstance(name, str) and name not in known_names()]


def _unfit_files(suite: Suite, source: Source) -> Iterator[Mistake]:
    """Inputs of kind file that are not there, or hold other tensors than their cases need."""
    cases = [case for device in suite.devices for case in suite.cases_on(device)]
    drawn_from: list[tuple[Location, Suite | OnCpu]] = [((), suite)]
    if suite.on_cpu:
        drawn_from.append((("on_cpu",), suite.on_cpu))
    for prefix, part in drawn_from:
        given: list[tuple[Location, Inputs]] = [
            *((("grid", "inputs", i), inputs) for i, inputs in enumerate(part.grid.inputs if part.grid else [])),
            *((("cases", i, "inputs"), case.inputs) for i, case in enumerate(part.cases)),
        ]
        for location, inputs in given:
            place = (*prefix, *location, "path")
            if inputs.path is not None and not Path(inputs.path).is_file():
                yield source.mistake(place, f"no file {inputs.path} (seen from {Path.cwd()})")
            elif inputs.path is not None:
                reading = [case for case in cases if case.inputs == inputs]
                found = [words for case in reading for words in header_mistakes(Path(inputs.path), case)]
                if found:
                    yield source.mistake(place, f"{inputs.path}: {'; '.join(dict.fromkeys(found))}")


def _idle_conditions(suite: Suite, source: Source) -> Iterator[Mistake]:
    """Devices without a case, and conditions that match none: whoever wrote them meant something."""
    drawn = [case for device in suite.devices for case in suite.drawn_on(device)]
    left = [case for device in suite.devices for case in suite.cases_on(device)]
    if not suite.cases_on(suite.devices[0]):
        yield source.mistake(("grid",), "no case is left: give a grid or cases, and exclude fewer of them")
    elif not suite.cases_on(suite.devices[-1]):
        yield source.mistake(("on_cpu",), "no case is left: give it a grid or cases")
    for position, where in enumerate(suite.exclude):
        if drawn and not any(where.matches(case) for case in drawn):
            yield source.mistake(("exclude", position), "matches no case of the suite")
    for position, expected in enumerate(suite.expectations):
        if left and not any(expected.where.matches(case) for case in left):
            yield source.mistake(("expectations", position, "where"), "matches no case of the suite")
