"""A suite: which implementations are measured on which cases, how, and what is expected. Data, read from YAML.

`load_suite` is the only way in; it reports every mistake of the file at once (`InvalidFile`). docs/suites.md explains
the keys.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError, model_validator

from harness.case import Case, DType, Inputs, Reduction
from harness.record import Expectation, Status
from harness.yaml_source import InvalidFile, Mistake, Source, mistakes_of, nearest, read_yaml
from implementations.registry import LOWER_BOUND, known_names

MINIMUM_SAMPLES = 20  # below this a median's 95 % interval is most of the range; fewer are never reported

Phase = Literal["memory", "time", "agreement"]
Device = Literal["cuda", "cpu", "auto"]
# "any", or a value of Status; spelt out so that a wrong one gets one message with all that is allowed
ExpectedStatus = Literal[
    "any", "ok", "disagrees", "impossible", "out_of_memory", "timeout", "crashed", "unsupported", "unavailable"
]
PHASES: tuple[Phase, ...] = get_args(Phase)


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


T = TypeVar("T")
OneOrMore: TypeAlias = Annotated[list[T], BeforeValidator(_as_list), Field(min_length=1)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Grid(_Model):
    """Axes; the cases are their product. Each is a value or a list of values, with `Case`'s meaning and defaults."""

    tokens: OneOrMore[Annotated[int, Field(gt=0)]]
    hidden_size: OneOrMore[Annotated[int, Field(gt=0)]]
    vocab_size: OneOrMore[Annotated[int, Field(gt=1)]]
    label_smoothing: OneOrMore[Annotated[float, Field(ge=0, le=1)]] = [0.0]
    dtype: OneOrMore[DType] = ["bfloat16"]
    softcap: OneOrMore[Annotated[float, Field(gt=0)] | None] = [None]
    ignored_fraction: OneOrMore[Annotated[float, Field(ge=0, le=1)]] = [0.0]
    reduction: OneOrMore[Reduction] = ["mean"]
    linear_bias: OneOrMore[bool] = [False]
    inputs: OneOrMore[Inputs] = [Inputs(kind="zipf-medium")]

    def cases(self, seed: int) -> list[Case]:
        axes = {name: getattr(self, name) for name in type(self).model_fields}
        return [Case(**dict(zip(axes, values, strict=True)), seed=seed) for values in itertools.product(*axes.values())]


class Where(_Model):
    """A condition on cases: every key given must match one of its values. No key matches every case."""

    tokens: OneOrMore[int] | None = None
    hidden_size: OneOrMore[int] | None = None
    vocab_size: OneOrMore[int] | None = None
    label_smoothing: OneOrMore[float] | None = None
    dtype: OneOrMore[DType] | None = None
    softcap: OneOrMore[float | None] | None = None
    ignored_fraction: OneOrMore[float] | None = None
    reduction: OneOrMore[Reduction] | None = None
    linear_bias: OneOrMore[bool] | None = None
    inputs: OneOrMore[Inputs] | None = None

    def matches(self, case: Case) -> bool:
        # model_fields_set, not "is None": `softcap: null` is a condition, a missing softcap is none
        return all(getattr(case, name) in (getattr(self, name) or [None]) for name in self.model_fields_set)


class SuiteImplementation(_Model):
    """A row: a name of the registry, or one's own name with `path: pkg.mod:obj`. In YAML a bare string is a name."""

    name: Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    path: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")] | None = None
    options: dict[str, JsonValue] = {}

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _has_an_origin(self) -> SuiteImplementation:
        if self.path is None and self.name not in known_names():
            hint = nearest(self.name, known_names())
            raise ValueError(
                f"no implementation is called '{self.name}'{hint} (known: {', '.join(known_names())}); "
                "an implementation of your own needs path: pkg.mod:obj"
            )
        if self.path is not None and self.name in known_names():
            raise ValueError(f"'{self.name}' is the registry's; give your own implementation another name")
        return self


class Measurement(_Model):
    """How rows are measured. A turn is one untimed call and then `samples_per_turn` timed ones."""

    phases: Annotated[list[Phase], Field(min_length=1)] = list(PHASES)
    minimum_rounds: Annotated[int, Field(ge=1)] = 10
    samples_per_turn: Annotated[int, Field(ge=1)] = 2
    target_interval: Annotated[float, Field(gt=0, lt=1)] = 0.01  # width of the median's 95 % interval / median
    case_budget_s: Annotated[float, Field(gt=0)] = 60.0  # rounds beyond the minimum stop when a case has taken this

    @model_validator(mode="after")
    def _enough_samples(self) -> Measurement:
        if "agreement" not in self.phases:
            raise ValueError(
                "phases must include agreement: a number of something that computes another loss is no number"
            )
        if "time" in self.phases and self.minimum_rounds * self.samples_per_turn < MINIMUM_SAMPLES:
            raise ValueError(
                f"minimum_rounds * samples_per_turn must be at least {MINIMUM_SAMPLES}, "
                f"given {self.minimum_rounds} * {self.samples_per_turn}"
            )
        return self


class Limits(_Model):
    """What a worker may use before it is stopped."""

    timeout_s: Annotated[float, Field(gt=0)] = 300.0  # one request: opening, one turn, one phase
    memory_fraction: Annotated[float, Field(gt=0, le=1)] = 0.95  # of the device's memory, per worker


class Expected(_Model):
    """A status known beforehand, with its reason: such a row is no failure of the run."""

    implementation: OneOrMore[str]
    where: Where = Where()
    status: OneOrMore[ExpectedStatus]
    reason: Annotated[str, Field(min_length=1)]


class OnCpu(_Model):
    """What `device: auto` uses instead where there is no GPU."""

    grid: Grid | None = None
    cases: list[Case] = []
    measurement: Measurement | None = None


class Suite(_Model):
    """A validated suite file."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    description: Annotated[str, Field(min_length=1)]
    device: Device = "cuda"
    seed: Annotated[int, Field(ge=0)] = 0
    grid: Grid | None = None
    cases: list[Case] = []
    exclude: list[Where] = []
    on_cpu: OnCpu | None = None
    implementations: Annotated[list[SuiteImplementation], Field(min_length=1)]
    reference: str = "baseline"
    measurement: Measurement = Measurement()
    limits: Limits = Limits()
    max_excess: Annotated[float, Field(gt=1)] = 4.0
    expectations: list[Expected] = []

    def cases_on(self, device: Literal["cuda", "cpu"]) -> list[Case]:
        """The cases of a run on `device`, in order, without duplicates and excluded ones."""
        source: Suite | OnCpu = self.on_cpu if device == "cpu" and self.on_cpu else self
        drawn = [*(source.grid.cases(self.seed) if source.grid else []), *source.cases]
        unique = {case.id: case for case in drawn if not any(where.matches(case) for where in self.exclude)}
        return list(unique.values())

    def measurement_on(self, device: Literal["cuda", "cpu"]) -> Measurement:
        override = self.on_cpu.measurement if device == "cpu" and self.on_cpu else None
        return override or self.measurement

    def expectation(self, implementation: str, case: Case) -> Expectation | None:
        """What the suite expects of a row; the first expectation that matches speaks."""
        for expected in self.expectations:
            if implementation in expected.implementation and expected.where.matches(case):
                status = list(Status) if "any" in expected.status else [Status(s) for s in expected.status]
                return Expectation(status=status, reason=expected.reason)
        return None


def load_suite(path: Path) -> Suite:
    """The suite in `path`. Raises InvalidFile with every mistake in it, each with its line."""
    source = read_yaml(path)
    try:
        suite = Suite.model_validate(source.data)
    except ValidationError as error:
        raise InvalidFile([*mistakes_of(error, source, Suite), *_cross_checks(source)]) from error
    mistakes = list(_cross_checks(source))
    if not suite.cases_on("cuda"):
        mistakes.append(source.mistake(("grid",), "no case is left: give a grid or cases, and exclude fewer of them"))
    elif suite.device == "auto" and not suite.cases_on("cpu"):
        mistakes.append(source.mistake(("on_cpu",), "on_cpu: no case is left: give it a grid or cases"))
    if suite.on_cpu and suite.device != "auto":
        mistakes.append(
            source.mistake(("on_cpu",), f"on_cpu has no effect with device: {suite.device}; use device: auto")
        )
    if mistakes:
        raise InvalidFile(mistakes)
    return suite


def _cross_checks(source: Source) -> list[Mistake]:
    """Names that must agree with each other; read from the raw data, to be reported beside other mistakes."""
    rows = source.data.get("implementations")
    named = [row.get("name") if isinstance(row, dict) else row for row in rows] if isinstance(rows, list) else []
    names = [name for name in named if isinstance(name, str)]
    mistakes = [
        source.mistake(("implementations", position), f"implementations.{position}: '{name}' is listed twice")
        for position, name in enumerate(named)
        if name in named[:position]
    ]
    reference = source.data.get("reference", "baseline")
    if names and (reference not in names or reference == LOWER_BOUND):
        why = "runs nothing" if reference == LOWER_BOUND else "is not among the implementations"
        mistakes.append(
            source.mistake(("reference",), f"reference: '{reference}' {why}{nearest(str(reference), names)}")
        )
    expectations = source.data.get("expectations")
    for position, expected in enumerate(expectations if isinstance(expectations, list) else []):
        wanted = expected.get("implementation") if isinstance(expected, dict) else None
        for name in _as_list(wanted) if names and wanted else []:
            if name not in names:
                where = ("expectations", position, "implementation")
                message = f"expectations.{position}.implementation: '{name}' is not among the implementations"
                mistakes.append(source.mistake(where, message + nearest(str(name), names)))
    return mistakes
