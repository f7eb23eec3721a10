"""YAML files with the line of every key, so that a mistake is reported as file:line with all others of its file."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

Location = tuple[str | int, ...]


@dataclass(frozen=True)
class Mistake:
    """One thing wrong with a file: where, and what would be right."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


class InvalidFile(ValueError):
    """A file with mistakes, all of them."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = sorted(mistakes, key=lambda m: m.line)
        super().__init__("\n".join(str(m) for m in self.mistakes))


@dataclass
class Source:
    """A parsed YAML mapping: plain values, and the line of each location in it."""

    file: str
    data: dict[str, Any]
    lines: dict[Location, int] = field(default_factory=dict)

    def line(self, location: Location) -> int:
        """The line of `location`, or of the nearest thing that contains it."""
        while location not in self.lines and location:
            location = location[:-1]
        return self.lines.get(location, 1)

    def mistake(self, location: Location, message: str) -> Mistake:
        return Mistake(self.file, self.line(location), message)


def read_yaml(path: Path) -> Source:
    """Parses `path`. Raises InvalidFile for what is no YAML mapping, and for every duplicate key at once."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else "not UTF-8 text"
        raise InvalidFile([Mistake(str(path), 1, f"cannot be read: {reason}")]) from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            raise InvalidFile([Mistake(str(path), 1, "is no mapping of keys to values")])
        source = Source(str(path), {})
        duplicates = list(_index(root, (), source))
        source.data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        raise InvalidFile([Mistake(str(path), mark.line + 1 if mark else 1, f"is not YAML: {problem}")]) from error
    if duplicates:
        raise InvalidFile(duplicates)
    return source


def _index(node: yaml.Node, location: Location, source: Source) -> Iterable[Mistake]:
    """Notes the line of every key and item below `node`; yields duplicate keys."""
    source.lines.setdefault(location, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        first_line: dict[str, int] = {}
        for key_node, value in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in first_line:
                yield Mistake(source.file, line, f"duplicate key '{key}', first given in line {first_line[key]}")
                continue
            first_line[key] = line
            source.lines[(*location, key)] = line
            yield from _index(value, (*location, key), source)
    elif isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            yield from _index(item, (*location, position), source)


def nearest(word: str, allowed: Iterable[str]) -> str:
    """A hint ", did you mean 'x'?", or nothing."""
    close = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f", did you mean '{close[0]}'?" if close else ""


def mistakes_of(error: ValidationError, source: Source, model: type[BaseModel], prefix: Location = ()) -> list[Mistake]:
    """Every error of a pydantic validation, in words: the key, what was given, what is allowed, the nearest name."""
    found: dict[tuple[int, str], Mistake] = {}
    for detail in error.errors():
        location = _in_file(source, (*prefix, *detail["loc"]))
        key = ".".join(str(part) for part in location) or "file"
        given, context = detail.get("input"), detail.get("ctx", {})
        if detail["type"] == "extra_forbidden":
            allowed = _keys_at(model, detail["loc"][:-1])
            message = f"unknown key '{key}'{nearest(str(location[-1]), allowed)} (allowed: {', '.join(allowed)})"
        elif detail["type"] == "missing":
            message = f"missing key '{'.'.join(map(str, (*prefix, *detail['loc'])))}'"
        elif detail["type"] == "literal_error":
            expected = str(context["expected"])
            names = [part.strip(" '") for part in expected.replace(" or ", ",").split(",")]
            message = f"{key}: {given!r} is none of {expected}{nearest(str(given), names)}"
        elif detail["type"] == "value_error":  # ours: the message says already what was given
            message = f"{key}: {context['error']}"
        elif detail["type"] == "string_pattern_mismatch":
            message = f"{key}: {given!r} does not match {context['pattern']}"
        else:
            message = f"{key}: {detail['msg'].removeprefix('Input ')}, not {given!r}"
        mistake = source.mistake(location, message)
        found.setdefault((mistake.line, message), mistake)
    return list(found.values())


def _in_file(source: Source, location: Location) -> Location:
    """`location` without the parts that pydantic adds for unions and validators and that no line of the file has."""
    kept: Location = ()
    for part in location:
        if (*kept, part) in source.lines:
            kept = (*kept, part)
    return kept if kept or not location else location[:1]


def _keys_at(model: type[BaseModel], location: Location) -> list[str]:
    """Names of the fields of the model that validates `location`, found by walking the annotations."""
    current: Any = model
    for part in location:
        models = _models_in(current)
        fields = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        current = fields[0] if fields else current
    return [name for m in _models_in(current)[:1] for name in m.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models that an annotation such as `list[Model] | None` mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in getattr(annotation, "__args__", ()) for m in _models_in(argument)]
