"""A suite: which implementations are measured on which cases, how, and what is expected. Data, read from YAML.

`harness.suite_file.load_suite` reads it. Checks that need several keys are validators of the last of them, not of the
model: those would wait for every other key to be right. docs/suites.md explains the keys.
"""

from __future__ import annotations

import itertools
import re
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    JsonValue,
    ValidationInfo,
    field_validator,
    model_validator,
)

from harness.case import DATA, AskedDevice, Case, Device, DType, Inputs, Reduction
from harness.record import Expectation, Status
from harness.yaml_source import nearest
from implementations.registry import LOWER_BOUND, REGISTRY, known_names

MINIMUM_SAMPLES = 20  # below this a median's 95 % interval is most of the range; fewer are never reported

Phase = Literal["memory", "time", "agreement", "attribution"]  # the last is optional: of the memory phase
# "any", or a value of Status; spelt out so that a wrong one gets one message with all that is allowed
ExpectedStatus = Literal[
    "any", "ok", "disagrees", "impossible", "out_of_memory", "timeout", "crashed", "unsupported", "unavailable"
]
USUAL_PHASES: tuple[Phase, ...] = ("memory", "time", "agreement")


def as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


T = TypeVar("T")
OneOrMore: TypeAlias = Annotated[list[T], BeforeValidator(as_list), Field(min_length=1)]


def _spelt(pattern: str, words: str) -> AfterValidator:
    """Strings of a form that is explained in words: a regular expression is no message."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"{value!r} should be {words}")
        return value

    return AfterValidator(check)


class _Model(BaseModel):
    model_config = DATA


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


class InputsCondition(Inputs):
    """A condition on inputs: those of the kind, whatever their parameters, or with exactly the parameters given."""

    @field_validator("path")
    @classmethod
    def _file_has_a_path(cls, value: str | None, _info: ValidationInfo) -> str | None:
        return value  # in place of the check of Inputs: any file will do

    def matches(self, inputs: Inputs) -> bool:
        return (
            self.kind == inputs.kind
            and self.path in (None, inputs.path)
            and self.std in (None, inputs.parameters.get("std"))
        )


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
    inputs: OneOrMore[InputsCondition] | None = None

    def matches(self, case: Case) -> bool:
        # model_fields_set, not "is None": `softcap: null` is a condition, a missing softcap is none
        return all(
            any(
                wanted.matches(case.inputs) if isinstance(wanted, InputsCondition) else wanted == getattr(case, name)
                for wanted in getattr(self, name) or [None]
            )
            for name in self.model_fields_set
        )


class SuiteImplementation(_Model):
    """A row: a name of the registry, or one's own name with `path: pkg.mod:obj`. In YAML a bare string is a name."""

    name: Annotated[
        str, _spelt(r"[A-Za-z0-9][A-Za-z0-9._-]*", "letters, digits, ., - and _, beginning with a letter or digit")
    ]
    path: Annotated[str, _spelt(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", "pkg.mod:obj")] | None = Field(
        default=None, validate_default=True
    )
    options: dict[str, JsonValue] = {}

    @property
    def location(self) -> str:
        """`pkg.mod:obj`, its own or the registry's. The lower bound has none."""
        return self.path or REGISTRY[self.name]

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("path")
    @classmethod
    def _has_an_origin(cls, path: str | None, info: ValidationInfo) -> str | None:
        name, known = info.data.get("name"), known_names()
        if name is not None and path is None and name not in known:
            raise ValueError(
                f"no implementation is called '{name}'{nearest(name, known)} (known: {', '.join(known)}); "
                "an implementation of your own needs path: pkg.mod:obj"
            )
        if path is not None and name in known:
            raise ValueError(f"'{name}' is the registry's; give your own implementation another name")
        return path

    @field_validator("options")
    @classmethod
    def _options_of_something_that_runs(
        cls, options: dict[str, JsonValue], info: ValidationInfo
    ) -> dict[str, JsonValue]:
        if options and info.data.get("name") == LOWER_BOUND:  # the others' options are known to their libraries alone
            raise ValueError(f"{LOWER_BOUND} runs nothing and has no options")
        return options


class Measurement(_Model):
    """How rows are measured. A turn is one untimed call and then `samples_per_turn` timed ones."""

    phases: Annotated[list[Phase], Field(min_length=1)] = list(USUAL_PHASES)
    minimum_rounds: Annotated[int, Field(ge=1)] = 10
    samples_per_turn: Annotated[int, Field(ge=1)] = Field(default=2, validate_default=True)
    target_interval: Annotated[float, Field(gt=0, lt=1)] = 0.01  # width of the 95 % interval of the ratio / the ratio
    case_budget_s: Annotated[float, Field(gt=0)] = 60.0  # rounds beyond the minimum stop when all have taken this
    lead_in_ms: Annotated[float, Field(ge=0, le=1000)] = 0.0  # of the case's GEMM, untimed, before every timed call

    @field_validator("phases")
    @classmethod
    def _agreement_is_not_optional(cls, phases: list[Phase]) -> list[Phase]:
        if "agreement" not in phases:
            raise ValueError("must include agreement: a number of something that computes another loss is no number")
        return phases

    @field_validator("samples_per_turn")
    @classmethod
    def _enough_samples(cls, samples: int, info: ValidationInfo) -> int:
        rounds = info.data.get("minimum_rounds", MINIMUM_SAMPLES)  # absent if it is wrong itself
        if "time" in info.data.get("phases", []) and rounds * samples < MINIMUM_SAMPLES:
            raise ValueError(
                f"minimum_rounds * samples_per_turn must be at least {MINIMUM_SAMPLES}, given {rounds} * {samples}"
            )
        return samples


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

    name: Annotated[str, _spelt(r"[a-z0-9][a-z0-9-]*", "lower case letters, digits and dashes")]
    description: Annotated[str, Field(min_length=1)]
    device: AskedDevice = "cuda"
    seed: Annotated[int, Field(ge=0)] = 0
    grid: Grid | None = None
    cases: list[Case] = []
    exclude: list[Where] = []
    on_cpu: OnCpu | None = None
    implementations: Annotated[list[SuiteImplementation], Field(min_length=1)]
    reference: str = "baseline"
    twice: str | None = None  # the row with a second worker, whose ratio to the first is noise; None: the reference
    measurement: Measurement = Measurement()
    limits: Limits = Limits()
    max_excess: Annotated[float, Field(gt=1)] = 4.0
    expectations: list[Expected] = []

    @property
    def devices(self) -> list[Device]:
        """What a run of the suite may be on."""
        return ["cuda", "cpu"] if self.device == "auto" else [self.device]

    def drawn_on(self, device: Device) -> list[Case]:
        """The grid's cases and the listed ones, without regard to `exclude`."""
        source: Suite | OnCpu = self.on_cpu if device == "cpu" and self.on_cpu else self
        listed = [c if "seed" in c.model_fields_set else c.model_copy(update={"seed": self.seed}) for c in source.cases]
        return [*(source.grid.cases(self.seed) if source.grid else []), *listed]

    def cases_on(self, device: Device) -> list[Case]:
        """The cases of a run on `device`, in order, without duplicates and excluded ones."""
        drawn = self.drawn_on(device)
        unique = {case.id: case for case in drawn if not any(where.matches(case) for where in self.exclude)}
        return list(unique.values())

    @property
    def measured_twice(self) -> str:
        """The row of the A/A."""
        return self.twice or self.reference

    def measurement_on(self, device: Device) -> Measurement:
        override = self.on_cpu.measurement if device == "cpu" and self.on_cpu else None
        return override or self.measurement

    def expectation(self, implementation: str, case: Case) -> Expectation | None:
        """What the suite expects of a row; the first expectation that matches speaks."""
        for expected in self.expectations:
            if implementation in expected.implementation and expected.where.matches(case):
                status = list(Status) if "any" in expected.status else [Status(s) for s in expected.status]
                return Expectation(status=status, reason=expected.reason)
        return None
