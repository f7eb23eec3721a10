"""Tokens on the disk, and the batches that a step sees: a pure function of the seed and the step.

So a training that resumes at step k sees what it would have seen, without a state to keep. Needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from harness.atomic import new_file
from harness.training.corpus import Corpus, InvalidCorpus
from harness.training.tokenizer import END_OF_DOCUMENT

TOKEN = np.dtype("<u4")
_DOCUMENTS_AT_ONCE = 256  # encoded side by side; bounds the memory that the encodings take


@dataclass(frozen=True)
class TokenFiles:
    """The encoded corpus: one file of uint32 tokens a split, documents joined by END_OF_DOCUMENT."""

    training_path: Path
    held_out_path: Path

    def exist(self) -> bool:
        return self.training_path.is_file() and self.held_out_path.is_file()

    def training(self) -> NDArray[np.uint32]:
        return np.memmap(self.training_path, dtype=TOKEN, mode="r")

    def held_out(self) -> NDArray[np.uint32]:
        return np.memmap(self.held_out_path, dtype=TOKEN, mode="r")


def token_files(cache: Path, key: str) -> TokenFiles:
    """Where the tokens with this key (`harness.training.tokenizer.cache_key`) are, or will be."""
    return TokenFiles(cache / f"tokens-{key}-training.u32", cache / f"tokens-{key}-held-out.u32")


def encode(corpus: Corpus, tokenizer: Tokenizer, files: TokenFiles) -> None:
    """Writes the corpus as tokens, unless it is written already."""
    if files.exist():
        return
    for documents, path in ((corpus.training, files.training_path), (corpus.held_out, files.held_out_path)):
        end = [tokenizer.token_to_id(END_OF_DOCUMENT)]
        with new_file(path) as temporary, temporary.open("wb") as file:
            for start in range(0, len(documents), _DOCUMENTS_AT_ONCE):
                chunk = list(documents[start : start + _DOCUMENTS_AT_ONCE])
                for encoding in tokenizer.encode_batch_fast(chunk, add_special_tokens=False):
                    file.write(np.array(encoding.ids + end, dtype=TOKEN).tobytes())
            file.flush()


def check_lengths(files: TokenFiles, context: int) -> None:
    """Raises InvalidCorpus if a split is shorter than one window of `context` tokens and their successors."""
    for name, tokens in (("training", files.training()), ("held-out", files.held_out())):
        if len(tokens) < context + 1:
            raise InvalidCorpus(
                f"the {name} text is {len(tokens)} tokens, fewer than model.context + 1 = {context + 1}: give more "
                "text, or a shorter context"
            )


def batch(
    tokens: NDArray[np.uint32], seed: int, step: int, batch_size: int, context: int
) -> NDArray[np.int64]:  # (B, T + 1)
    """Windows at random places; the first T columns are inputs, the last T targets. `step` counts from 1."""
    starts = np.random.default_rng([seed, step]).integers(0, len(tokens) - context, size=batch_size)
    return np.stack([tokens[start : start + context + 1] for start in starts]).astype(np.int64)


def evaluation_windows(
    tokens: NDArray[np.uint32], context: int, max_tokens: int
) -> NDArray[np.int64]:  # (windows, T + 1)
    """The first windows of held-out text, each target once: at most `max_tokens` targets, but one window always."""
    count = max(1, min(max_tokens, len(tokens) - 1) // context)
    return np.stack([tokens[k * context : (k + 1) * context + 1] for k in range(count)]).astype(np.int64)
