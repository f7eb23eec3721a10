"""A case: one point of a suite's grid, the unit in which implementations are compared and runs resume."""

from __future__ import annotations

import hashlib
import json
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

Device = Literal["cuda", "cpu"]
AskedDevice = Literal["cuda", "cpu", "auto"]  # auto: the GPU if there is one
DType = Literal["bfloat16", "float16", "float32"]
Reduction = Literal["mean", "sum", "none"]
InputsKind = Literal["gaussian", "zipf-weak", "zipf-medium", "zipf-strong", "confident", "uniform", "smoothed", "file"]

ITEMSIZE: dict[str, int] = {"bfloat16": 2, "float16": 2, "float32": 4}  # bytes
SHORT_DTYPE: dict[str, str] = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}

# Strict, since YAML 1.1 has surprises: `yes` is a boolean and `1e-2` a string, and neither is a number of anything.
DATA = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Inputs(BaseModel):
    """Which tensors a case computes on; `harness.worker.inputs` draws them. In YAML a bare string names the kind."""

    model_config = DATA

    kind: InputsKind
    std: Annotated[float, Field(gt=0)] | None = None  # gaussian: standard deviation of the logits; others have none
    # file: safetensors; see docs/inputs.md
    path: Annotated[str, StringConstraints(min_length=1)] | None = Field(default=None, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("std", "path")
    @classmethod
    def _fits_the_kind(cls, value: Any, info: ValidationInfo) -> Any:
        owner, kind = {"std": "gaussian", "path": "file"}[str(info.field_name)], info.data.get("kind")
        if value is not None and kind not in (None, owner):
            raise ValueError(f"belongs to inputs of kind {owner}, not {kind}")
        return value

    @field_validator("path")
    @classmethod
    def _file_has_a_path(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and info.data.get("kind") == "file":
            raise ValueError("inputs of kind file need a path")
        return value

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

    model_config = DATA

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
