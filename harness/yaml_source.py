"""YAML files with the line of every key, so that a mistake is reported as file:line with all others of its file.

A mapping that a program made, in place of a file, has keys and no lines.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Location = tuple[str | int, ...]

_MAPPING = "should be a mapping of keys to values"
# pydantic's types of errors whose own words are about Python
_WORDS = {
    "model_type": _MAPPING,
    "dict_type": _MAPPING,
    "list_type": "should be a list",
    "bool_type": "should be true or false",
}
_LETTERS_OFF = 0.85  # likeness of a key and one with a letter or two wrong: a typo, whatever other levels have
_DASH_HINT = "write `- x`, with a space after the dash"


@dataclass(frozen=True)
class Mistake:
    """One thing wrong with a file: where, and what would be right."""

    file: str
    line: int | None  # None where there is no line to look at
    message: str

    def __str__(self) -> str:
        return f"{self.file}{'' if self.line is None else f':{self.line}'}: {self.message}"


class InvalidFile(ValueError):
    """A file with mistakes, all of them."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = sorted(mistakes, key=lambda m: m.line or 0)
        super().__init__("\n".join(str(m) for m in self.mistakes))


@dataclass
class Source:
    """A parsed YAML mapping: plain values, and the line of each location in it; None where there is no file."""

    file: str
    data: dict[str, Any]
    lines: dict[Location, int | None] = field(default_factory=dict)

    def line(self, location: Location) -> int | None:
        """The line of `location`, or of the nearest thing that contains it."""
        while location not in self.lines and location:
            location = location[:-1]
        return self.lines.get(location, 1)

    def written(self, location: Location) -> Location:
        """`location` without the parts that the file has no line for: a list around one value, pydantic's unions."""
        kept: Location = ()
        for part in location:
            if (*kept, part) in self.lines:
                kept = (*kept, part)
        return kept or location[:1]

    def mistake(self, location: Location, message: str) -> Mistake:
        """`message` about the key at `location`."""
        location = self.written(location)
        return Mistake(self.file, self.line(location), f"{_dotted(location) or 'file'}: {message}")


def read_yaml(path: Path) -> Source:
    """Parses `path`. Raises InvalidFile for what is no YAML mapping, and for every duplicate key at once."""
    try:
        text = path.read_text(encoding="utf-8")
    except IsADirectoryError as error:
        raise InvalidFile([Mistake(str(path), None, "is a directory")]) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else "not UTF-8 text"
        raise InvalidFile([Mistake(str(path), None, f"cannot be read: {reason}")]) from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            raise InvalidFile([Mistake(str(path), 1, "is no mapping of keys to values")])
        source = Source(str(path), {})
        duplicates = list(_index(root, (), source))
        source.data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        if mark is None or "simple key" in str(
            getattr(error, "context", None)
        ):  # a key without colon: it is noticed lines later
            mark = getattr(error, "context_mark", None)
        line = mark.line + 1 if mark else 1
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        raise InvalidFile([Mistake(str(path), line, f"is not YAML: {problem}{_hint(problem, text, line)}")]) from error
    if duplicates:
        raise InvalidFile(duplicates)
    return source


def in_memory(name: str, data: Mapping[str, Any]) -> Source:
    """A mapping that stands in no file: mistakes in it have `name` and their key."""
    source = Source(name, as_in_a_file(data))
    source.lines = dict.fromkeys(_locations(source.data, ()))
    return source


def as_in_a_file(value: Any) -> Any:
    """`value` with dicts and lists for the mappings and sequences in it, as YAML has no others."""
    if isinstance(value, Mapping):
        return {key: as_in_a_file(item) for key, item in value.items()}
    return [as_in_a_file(item) for item in value] if isinstance(value, (list, tuple)) else value


def _locations(value: Any, here: Location) -> Iterator[Location]:
    yield here
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _locations(item, (*here, key))


def _hint(problem: str, text: str, line: int) -> str:
    """What to do about the parser's `problem`, where that has a usual cause."""
    content = [*text.splitlines(), ""][line - 1]  # the end of the file may be reported as a line of its own
    if re.match(r"\s*-[^\s-]", content):
        return f"; {_DASH_HINT}"
    if "'\\t'" in problem:
        return "; indent with spaces, not tabs"
    if "mapping values are not allowed" in problem:
        return "; quote a value that has a colon, or check the indentation"
    return ""


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


def nearest(word: str, allowed: Iterable[str], likeness: float = 0.5) -> str:
    """A hint ", did you mean 'x'?", or nothing; `likeness` is of difflib, 0.5 for fp32, which means float32."""
    close = difflib.get_close_matches(word, list(allowed), n=1, cutoff=likeness)
    return f", did you mean '{close[0]}'?" if close else ""


def mistakes_of(error: ValidationError, source: Source, model: type[BaseModel]) -> list[Mistake]:
    """Every error of a pydantic validation, in words: the key, what was given, what is allowed, the nearest name."""
    found: dict[Mistake, None] = {}  # a set that keeps the order
    for detail in error.errors():
        parent = source.written(detail["loc"][:-1])
        if detail["type"] == "extra_forbidden":
            key = str(detail["loc"][-1])
            here = _model_at(model, detail["loc"][:-1])
            typo = nearest(key, here.model_fields, _LETTERS_OFF)
            hint = typo or _elsewhere(key, here, parent, model) or nearest(key, here.model_fields)
            message = f"unknown key '{_dotted((*parent, key))}'{hint} (allowed: {', '.join(here.model_fields)})"
            mistake = Mistake(source.file, source.line((*parent, key)), message)
        elif detail["type"] == "missing":
            message = f"missing key '{_dotted((*parent, detail['loc'][-1]))}'"
            mistake = Mistake(source.file, source.line(parent), message)
        else:
            mistake = source.mistake(detail["loc"], _in_words(detail))
        found.setdefault(mistake)
    return list(found)


def _in_words(detail: ErrorDetails) -> str:
    """What is wrong with one value."""
    kind, given, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "value_error":  # ours: the message says already what was given
        return str(context["error"])
    if kind in ("too_short", "string_too_short"):
        return "is empty"
    if kind == "literal_error":
        expected = str(context["expected"])
        names = [part.strip(" '") for part in expected.replace(" or ", ",").split(",")]
        return f"{_shown(given)} is none of {expected}{nearest(str(given), names)}"
    message = f"{_WORDS.get(kind) or detail['msg'].removeprefix('Input ')}, not {_shown(given)}"
    if isinstance(given, str) and kind in ("int_type", "float_type"):
        message += _as_number(given, whole=kind == "int_type")
    if kind == "list_type" and str(next(iter(given), "") if isinstance(given, dict) else given).startswith("-"):
        message += f"; {_DASH_HINT}"
    return message


def _shown(given: object) -> str:
    """`given` as the file may have it: YAML 1.1 reads `yes` as a boolean, which a reader would not guess."""
    if given is None:
        return "null"
    return f"the boolean {str(given).lower()}" if isinstance(given, bool) else repr(given)


def _as_number(text: str, whole: bool) -> str:
    """A hint how to write the number that `text` looks like; YAML 1.1 needs a point and a sign in the exponent."""
    number = re.fullmatch(r"([-+]?\d+)(\.\d*)?(?:[eE]([-+]?\d+))?", text)
    if number is None:
        return ""
    if whole:
        return f"; write {float(text):.0f}" if float(text).is_integer() else ""
    integer, fraction, exponent = number.groups()
    return f"; write {integer}{fraction or '.0'}{f'e{int(exponent):+d}' if exponent else ''}"


def _dotted(location: Location) -> str:
    return ".".join(str(part) for part in location)


def _model_at(model: type[BaseModel], location: Location) -> type[BaseModel]:
    """The model that validates `location`, found by walking the annotations."""
    current: Any = model
    for part in location:
        fields = [m.model_fields[part].annotation for m in _models_in(current) if part in m.model_fields]
        current = fields[0] if fields else current
    return _models_in(current)[0]


def _elsewhere(key: str, here: type[BaseModel], location: Location, root: type[BaseModel]) -> str:
    """A hint where `key`, which `here` at `location` has not, belongs: in one of its own keys, or at another level."""
    if key in root.model_fields:
        return ", it belongs at the top level"
    for owner, prefix in ((here, location), (root, ())):
        for name, field_info in owner.model_fields.items():
            if any(key in inner.model_fields for inner in _models_in(field_info.annotation)):
                return f", it belongs under {_dotted((*prefix, name))}"
    return ""


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models that an annotation such as `list[Model] | None` mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in getattr(annotation, "__args__", ()) for m in _models_in(argument)]
