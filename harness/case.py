"""A case: one point of a suite's grid, the unit in which implementations are compared and runs resume."""

from __future__ import annotations

import hashlib
import json
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, field_validator, model_validator

DType = Literal["bfloat16", "float16", "float32"]
Reduction = Literal["mean", "sum", "none"]
InputsKind = Literal["gaussian", "zipf-weak", "zipf-medium", "zipf-strong", "confident", "uniform", "smoothed", "file"]

ITEMSIZE: dict[str, int] = {"bfloat16": 2, "float16": 2, "float32": 4}  # bytes
SHORT_DTYPE: dict[str, str] = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


class Inputs(BaseModel):
    """Which tensors a case computes on; `harness.worker.inputs` draws them. In YAML a bare string names the kind."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: InputsKind
    std: Annotated[float, Field(gt=0)] | None = None  # gaussian: standard deviation of the logits; others have none
    path: Annotated[str, StringConstraints(min_length=1)] | None = None  # file: safetensors; see docs/inputs.md

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _parameters_fit_the_kind(self) -> Inputs:
        if self.std is not None and self.kind != "gaussian":
            raise ValueError(f"std belongs to inputs of kind gaussian, not {self.kind}")
        if (self.path is not None) != (self.kind == "file"):
            raise ValueError("inputs of kind file, and only they, have a path")
        return self

    @property
    def label(self) -> str:
        """The kind as tables print it: `zipf-medium`, `gaussian`, `file:NAME`."""
        return f"file:{PurePosixPath(self.path).stem}" if self.path is not None else self.kind

    @property
    def parameters(self) -> dict[str, JsonValue]:
        """What else fixes the draw."""
        return {"std": self.std if self.std is not None else 1.0} if self.kind == "gaussian" else {}


class Case(BaseModel):
    """N tokens against a (V, D) classifier, with everything that changes the mathematics or the numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: int = Field(gt=0)  # N
    hidden_size: int = Field(gt=0)  # D
    vocab_size: int = Field(gt=1)  # V
    label_smoothing: float = Field(default=0.0, ge=0, le=1)  # beta
    softcap: float | None = Field(default=None, gt=0)
    dtype: DType = "bfloat16"
    reduction: Reduction = "mean"
    ignored_fraction: float = Field(default=0.0, ge=0, le=1)  # share of the rows whose target is ignore_index
    linear_bias: bool = False
    inputs: Inputs = Inputs(kind="zipf-medium")
    seed: int = Field(default=0, ge=0)

    @field_validator("label_smoothing", "ignored_fraction", "softcap", mode="before")
    @classmethod
    def _no_bool(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("a number, not true or false")
        return value

    @property
    def id(self) -> str:
        """Stable, readable, unique: equal cases have equal ids in every run and on every machine.

        Whatever has its default is left out, so that a new axis does not rename old cases; the digest tells apart
        what the readable part does not.
        """
        parts = [
            f"n{self.tokens}-d{self.hidden_size}-v{self.vocab_size}",
            SHORT_DTYPE[self.dtype],
            f"b{self.label_smoothing:g}",
            self.inputs.label.replace(":", "-"),
        ]
        if self.inputs.std is not None:
            parts.append(f"std{self.inputs.std:g}")
        if self.softcap is not None:
            parts.append(f"cap{self.softcap:g}")
        if self.ignored_fraction:
            parts.append(f"ign{self.ignored_fraction:g}")
        if self.linear_bias:
            parts.append("bias")
        if self.reduction != "mean":
            parts.append(self.reduction)
        if self.seed:
            parts.append(f"seed{self.seed}")
        digest = hashlib.sha256(
            json.dumps(self.model_dump(exclude_defaults=True), sort_keys=True).encode()
        ).hexdigest()[:6]
        return "-".join([*parts, digest])

    @property
    def itemsize(self) -> int:
        """Bytes per element of input, linear_weight and their gradients."""
        return ITEMSIZE[self.dtype]
