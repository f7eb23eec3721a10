"""A model whose head is captured: its hidden states after the last norm, its head, and text it was not trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

_HEAD_ROUNDING = 0.05  # of the logits' deviation; bf16 logits are off by 0.01 of it, a forgotten factor by far more


class InvalidSource(ValueError):
    """A model or a text that nothing can be captured from; one clear sentence."""


@dataclass(frozen=True)
class Source:
    """What `harness.capture.activations.capture` needs of a model."""

    hidden_states: Callable[[Tensor], Tensor]  # tokens (B, T) int64 -> (B, T, D)
    linear_weight: Tensor  # (V, D)
    linear_bias: Tensor | None  # (V,)
    softcap: float | None
    context: int  # T at most
    tokens: NDArray[np.integer[Any]]  # the text, one long row
    origin: dict[str, str]  # where all this comes from, for the file

    @property
    def predictions(self) -> int:
        """How many tokens of the text can be predicted, in whole windows of `context`."""
        return (len(self.tokens) - 1) // self.context * self.context


def from_checkpoint(path: Path, device: torch.device) -> Source:
    """A checkpoint of `harness train`, with the held-out text of the corpus it was trained on.

    The default corpus is the Python installation: elsewhere it is another text, so the origin has its digest. Raises
    UnusableRun if there is no checkpoint, InvalidCorpus if its text cannot be read any more.
    """
    from harness.training.batches import encode, token_files  # noqa: PLC0415  (tokenizers, for this source alone)
    from harness.training.checkpoint import load_checkpoint  # noqa: PLC0415
    from harness.training.corpus import read_corpus  # noqa: PLC0415
    from harness.training.tokenizer import cache_key  # noqa: PLC0415

    checkpoint = load_checkpoint(path, device)
    model, config = checkpoint.model.eval(), checkpoint.config
    corpus = read_corpus(config.data)
    key = cache_key(corpus.digest, config.model.vocab_size, config.tokenizer.max_bytes)
    files = token_files(Path(config.data.cache), key)
    encode(corpus, checkpoint.tokenizer, files)
    return Source(
        hidden_states=model.hidden_states,
        linear_weight=model.head_weight.detach(),
        linear_bias=None,
        softcap=model.softcap,
        context=config.model.context,
        tokens=files.held_out(),
        origin={
            "model": str(path),
            "loss": checkpoint.loss,
            "label_smoothing": f"{checkpoint.label_smoothing:g}",
            "step": str(checkpoint.step),
            "seed": str(config.training.seed),
            "text": f"held-out documents of {corpus.description}",
            "corpus_sha256": corpus.digest,
        },
    )


def from_huggingface(name: str, text: list[Path], context: int, device: torch.device) -> Source:
    """A causal language model of transformers: a directory, or a name on the hub, with the text of files.

    Hidden states are what the output embeddings are called with. Raises InvalidSource without the package, for a model
    that cannot be loaded or whose logits are not softcap(head(hidden states)), and for files without text.
    """
    try:
        import transformers  # noqa: PLC0415  (an optional extra)
    except ImportError as error:
        raise InvalidSource(
            "capturing from a Hugging Face model needs transformers: "
            "pip install 'linear-cross-entropy-bench[huggingface]'"
        ) from error
    words = "\n".join(_read(file) for file in text)
    if not words.strip():
        given = f"nothing in {', '.join(map(str, text))}" if text else "give it with --text FILE"
        hub = "is no directory here, so it is taken for a name on the Hugging Face hub"
        given += "" if Path(name).is_dir() else f" ({name} {hub})"
        raise InvalidSource(f"no text to run {name} on: {given}")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(name, dtype="auto")
    except (OSError, ValueError) as error:
        raise InvalidSource(f"{name} cannot be loaded by transformers: {' '.join(str(error).split())}") from error
    model.to(device).eval()
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise InvalidSource(f"{name} ({type(model).__name__}) has no linear head, but {type(head).__name__}")
    settings = model.config.get_text_config()
    softcap = getattr(settings, "final_logit_softcapping", None)
    longest = getattr(settings, "max_position_embeddings", None) or context
    tokens = np.array(tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64)
    if len(tokens) < 2:
        raise InvalidSource(f"the text is {len(tokens)} tokens long, too few to predict one")
    reader = _HeadInput(model, head)
    window = torch.from_numpy(tokens[None, : min(context, longest, len(tokens))]).to(device)
    _check_logits(name, reader, window, softcap)
    return Source(
        hidden_states=lambda batch: reader(batch)[0],
        linear_weight=head.weight.detach(),
        linear_bias=None if head.bias is None else head.bias.detach(),
        softcap=softcap,
        context=min(context, longest),
        tokens=tokens,
        origin={"model": name, "class": type(model).__name__, "text": ", ".join(map(str, text))},
    )


class _HeadInput:
    """Runs a model and keeps what its head was called with."""

    def __init__(self, model: Any, head: nn.Linear) -> None:
        self.model, self.head = model, head

    def __call__(self, tokens: Tensor) -> tuple[Tensor, Tensor]:  # (B, T) -> (B, T, D), (B, T, V)
        kept: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _head, arguments: kept.append(arguments[0]))
        try:
            logits = self.model(input_ids=tokens, use_cache=False).logits
        finally:
            hook.remove()
        return kept[0], logits


@torch.no_grad()
def _check_logits(name: str, reader: _HeadInput, tokens: Tensor, softcap: float | None) -> None:
    """Refuses a model that does more to its logits than a softcap: its file would be of another loss."""
    hidden, logits = reader(tokens)
    expected = F.linear(hidden, reader.head.weight, reader.head.bias).float()
    if softcap is not None:
        expected = torch.tanh(expected / softcap) * softcap
    difference = float((logits.float() - expected).abs().max() / expected.std())
    if difference > _HEAD_ROUNDING:
        raise InvalidSource(
            f"{name} does not end in its head{'' if softcap is None else f' and a softcap of {softcap:g}'}: its logits "
            f"differ by {difference:.2g} standard deviations (a scale on logits has no place in the file)"
        )


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSource(f"{file} cannot be read as text: {error}") from error
