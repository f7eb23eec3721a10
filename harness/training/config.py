"""A training file: the model, its text, how it is trained, and with which losses. Data, read from YAML.

`load_training` reads it. Whoever changes a key changes docs/training.md too. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator

from harness.case import DATA, Case, Device
from harness.file_kind import check_kind
from harness.selection import InvalidSelection
from harness.suite import OneOrMore, SuiteImplementation
from harness.yaml_source import InvalidFile, Mistake, Source, mistakes_of, nearest, read_yaml
from implementations.registry import LOWER_BOUND, REGISTRY

SMALLEST_VOCABULARY = 257  # the bytes, and the token between documents
LOCAL_DATASETS = {".parquet": "parquet", ".json": "json", ".jsonl": "json"}  # suffix -> builder of `datasets`

Positive = Annotated[int, Field(gt=0)]
T = TypeVar("T")


class _Settings(BaseModel):
    model_config = DATA


class ModelSettings(_Settings):
    """The shape of the decoder; `harness.training.model` builds it."""

    vocab_size: Annotated[int, Field(ge=SMALLEST_VOCABULARY)]  # V, of the tokenizer too
    hidden_size: Positive  # D
    layers: Positive
    heads: Positive
    context: Annotated[int, Field(ge=2)]  # T, tokens of a window
    tied: bool = True  # the head's weight is the embedding's
    softcap: Annotated[float, Field(gt=0)] | None = None  # of the logits
    mlp: Literal["swiglu", "gelu"] = "swiglu"

    @field_validator("heads")
    @classmethod
    def _divides_the_hidden_size(cls, heads: int, info: ValidationInfo) -> int:
        hidden_size = info.data.get("hidden_size", 2 * heads)  # absent if it is wrong itself
        if hidden_size % heads:
            raise ValueError(f"hidden_size {hidden_size} is not divisible by {heads} heads")
        if hidden_size // heads % 2:
            raise ValueError(
                f"a head is {hidden_size // heads} wide (hidden_size {hidden_size} / {heads}): rotary positions turn "
                "pairs, so it must be even"
            )
        return heads


class DataSettings(_Settings):
    """Where the text comes from: `text`, `dataset`, or, without either, the running Python installation."""

    text: OneOrMore[str] | None = None  # files and directories
    dataset: Annotated[str, Field(min_length=1)] | None = None  # a name on the Hugging Face hub, or a local file
    subset: str | None = None  # of a dataset that has several
    split: str = "train"
    text_column: str = "text"
    max_bytes: Positive = 64_000_000
    held_out_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.02  # of the documents
    cache: str = "runs/training-cache"  # the directory of tokenizers and encoded text

    @field_validator("dataset")
    @classmethod
    def _one_source(cls, dataset: str | None, info: ValidationInfo) -> str | None:
        if dataset is not None and info.data.get("text") is not None:
            raise ValueError("give text or dataset, not both")
        return dataset


class TokenizerSettings(_Settings):
    """The byte-level BPE that is trained on the corpus; its vocabulary has the model's size."""

    max_bytes: Positive = 16_000_000  # of the training documents; merges of more text are hardly other ones


class TrainingSettings(_Settings):
    """AdamW, and what is written when."""

    steps: Positive
    batch_size: Positive  # B, windows of `context` tokens
    learning_rate: Annotated[float, Field(gt=0)]
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    schedule: Literal["cosine", "constant"] = "cosine"  # after the warmup; cosine ends at a tenth
    weight_decay: Annotated[float, Field(ge=0)] = 0.1  # of matrices; norms have none
    gradient_clip: Annotated[float, Field(gt=0)] | None = 1.0  # largest norm of the whole gradient
    seed: Annotated[int, Field(ge=0)] = 0
    label_smoothing: OneOrMore[Annotated[float, Field(ge=0, le=1)]] = [0.0]  # beta
    evaluate_every: Positive | None = None  # steps; and at the end
    evaluation_tokens: Positive = 131_072  # of the held-out text, at most
    checkpoint_every: Positive | None = None  # steps; and at the end
    keep_steps: list[Positive] = []  # whose model is kept, for captures of an early head; the last one always is

    @field_validator("warmup_steps")
    @classmethod
    def _shorter_than_the_training(cls, warmup: int, info: ValidationInfo) -> int:
        if warmup >= info.data.get("steps", warmup + 1):
            raise ValueError(f"{warmup} is not less than steps, {info.data['steps']}")
        return warmup

    @field_validator("keep_steps")
    @classmethod
    def _steps_there_are(cls, kept: list[int], info: ValidationInfo) -> list[int]:
        steps = info.data.get("steps", max(kept, default=0))
        if beyond := [step for step in kept if step > steps]:
            raise ValueError(f"{', '.join(map(str, beyond))}: the training has {steps} steps")
        return kept

    @field_validator("label_smoothing")
    @classmethod
    def _no_curve_twice(cls, values: list[float]) -> list[float]:
        return _unique(values)


@dataclass(frozen=True)
class Curve:
    """One training: a loss, and a label smoothing."""

    loss: SuiteImplementation
    label_smoothing: float

    @property
    def id(self) -> str:
        return f"{self.loss.name}-b{self.label_smoothing:g}"


class TrainingConfig(_Settings):
    """A validated training file."""

    model: ModelSettings
    data: DataSettings = DataSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    training: TrainingSettings
    loss: OneOrMore[SuiteImplementation]

    @field_validator("loss")
    @classmethod
    def _losses_that_train(cls, losses: list[SuiteImplementation]) -> list[SuiteImplementation]:
        names = _unique([loss.name for loss in losses])
        if LOWER_BOUND in names:
            raise ValueError(f"'{LOWER_BOUND}' runs nothing, so it trains nothing")
        return losses

    def curves(self) -> list[Curve]:
        """Every loss at every label smoothing, one smoothing after the other."""
        return [Curve(loss, beta) for beta in self.training.label_smoothing for loss in self.loss]

    def case(self, curve: Curve, device: Device) -> Case:
        """What a step asks of the loss, as implementations are asked whether they support it."""
        return Case(
            tokens=self.training.batch_size * self.model.context,
            hidden_size=self.model.hidden_size,
            vocab_size=self.model.vocab_size,
            label_smoothing=curve.label_smoothing,
            softcap=self.model.softcap,
            dtype="bfloat16" if device == "cuda" else "float32",
        )


def load_training(path: Path) -> TrainingConfig:
    """The training in `path`. Raises InvalidFile with every mistake and its line; missing text is one of them."""
    source = read_yaml(path)
    try:
        config = TrainingConfig.model_validate(source.data)
    except ValidationError as error:
        check_kind(source, "training")
        raise InvalidFile(mistakes_of(error, source, TrainingConfig)) from error
    missing = list(_missing_text(config.data, source))
    if missing:
        raise InvalidFile(missing)
    return config


def with_losses(config: TrainingConfig, names: Sequence[str]) -> TrainingConfig:
    """The config with these losses in place of its own; its options stay. Raises InvalidSelection."""
    given = {loss.name: loss for loss in config.loss}
    known = list(dict.fromkeys([*given, *REGISTRY]))
    for name in names:
        if name not in known:
            hint = "; repeat --loss for each" if "," in name else nearest(name, known)
            raise InvalidSelection(f"--loss {name}: no implementation has this name{hint} (known: {', '.join(known)})")
    if len(set(names)) < len(names):
        raise InvalidSelection("--loss names one implementation twice")
    losses = [given.get(name) or SuiteImplementation(name=name) for name in names]
    return config.model_copy(update={"loss": losses}) if names else config


def _unique(values: list[T]) -> list[T]:
    for position, value in enumerate(values):
        if value in values[:position]:
            raise ValueError(f"{value} is listed twice")
    return values


def _missing_text(data: DataSettings, source: Source) -> Iterator[Mistake]:
    for position, path in enumerate(data.text or []):
        if not Path(path).exists():
            message = f"no file or directory {path} (seen from {Path.cwd()})"
            yield source.mistake(("data", "text", position), message)
    local = data.dataset is not None and Path(data.dataset).suffix in LOCAL_DATASETS
    if local and not Path(str(data.dataset)).exists():
        yield source.mistake(("data", "dataset"), f"no file {data.dataset} (seen from {Path.cwd()})")
    if data.dataset and not local and Path(data.dataset).is_file():
        message = f"{data.dataset} is a file, but none of {', '.join(LOCAL_DATASETS)}; plain text is given as data.text"
        yield source.mistake(("data", "dataset"), message)
