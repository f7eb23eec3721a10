"""A policy: what counts as a regression. Data, read from YAML by `harness.comparison.policy_file`; see docs/gating.md.

Every margin is relative to the base's own figure, or an exact number of bytes: nothing in it belongs to one GPU.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from harness.case import DATA, Case, Device
from harness.suite import OneOrMore, Where

Unsure = Literal["inconclusive", "pass", "fail"]


class Margins(BaseModel):
    """What one row on one case is held to. The reasons for the defaults are in policies/default.yaml."""

    model_config = DATA

    time_margin: Annotated[float, Field(gt=0, lt=1)] = 0.015  # rows of one run, by the paired ratio of their rounds
    time_margin_across: Annotated[float, Field(gt=0, lt=1)] = 0.05  # two runs, by the ratio of ratios to the GEMM
    time_devices: list[Device] = ["cuda"]  # where a time fails the gate; elsewhere it is printed
    unsure: Unsure = "inconclusive"  # what an UNSURE time does: exit 6, nothing, or exit 1
    memory_margin_bytes: Annotated[int, Field(ge=0)] = 0  # that a peak may grow by
    excess_margin: Annotated[float, Field(ge=0)] = 0.25  # fraction that an excess beyond 1 may grow by
    must_be_ok: bool = False  # even where the suite expects another status, or base was no better


class Rule(BaseModel):
    """Other margins for some rows. For each key the first rule that matches and has it speaks."""

    model_config = DATA

    implementation: OneOrMore[str] | None = None  # None: every one
    where: Where = Where()
    reason: Annotated[str, Field(min_length=1)]
    time_margin: Annotated[float, Field(gt=0, lt=1)] | None = None
    time_margin_across: Annotated[float, Field(gt=0, lt=1)] | None = None
    time_devices: list[Device] | None = None
    unsure: Unsure | None = None
    memory_margin_bytes: Annotated[int, Field(ge=0)] | None = None
    excess_margin: Annotated[float, Field(ge=0)] | None = None
    must_be_ok: bool | None = None

    def matches(self, implementation: str, case: Case) -> bool:
        """Whether it speaks of this row."""
        return (self.implementation is None or implementation in self.implementation) and self.where.matches(case)


class Policy(Margins):
    """A validated policy file: margins for everything, and rules for what differs."""

    name: Annotated[str, Field(min_length=1)] = "default"
    description: str = ""
    rules: list[Rule] = []

    def margins(self, implementation: str, case: Case) -> Margins:
        """What the row on the case is held to."""
        found = {name: getattr(self, name) for name in Margins.model_fields}
        for rule in reversed(self.rules):
            if rule.matches(implementation, case):
                found |= {name: value for name in found if (value := getattr(rule, name)) is not None}
        return Margins(**found)
