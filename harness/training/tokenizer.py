"""A byte-level BPE tokenizer, trained on the corpus by Hugging Face's `tokenizers`, and kept as a file.

Bytes are tokens, so every text can be encoded and no corpus needs an unknown token. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from harness.atomic import new_file
from harness.training.corpus import Corpus, InvalidCorpus

END_OF_DOCUMENT = "<|end|>"


def tokenizer_of(corpus: Corpus, vocab_size: int, max_bytes: int, cache: Path) -> Tokenizer:
    """The tokenizer of the corpus: read from `cache`, else trained on its first `max_bytes` and put there.

    Raises InvalidCorpus if that text has too few different words for `vocab_size` tokens.
    """
    path = cache / f"tokenizer-{cache_key(corpus.digest, vocab_size, max_bytes)}.json"
    if path.is_file():
        return Tokenizer.from_file(str(path))
    tokenizer = train_tokenizer(corpus, vocab_size, max_bytes)
    with new_file(path) as temporary:
        tokenizer.save(str(temporary))
    return tokenizer


def cache_key(corpus_digest: str, vocab_size: int, max_bytes: int) -> str:
    """What fixes a tokenizer, and so the tokens of its corpus, as a part of file names."""
    return f"{corpus_digest[:16]}-v{vocab_size}-m{max_bytes}"


def train_tokenizer(corpus: Corpus, vocab_size: int, max_bytes: int) -> Tokenizer:
    """A tokenizer with exactly `vocab_size` tokens. Raises InvalidCorpus if there are not as many."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_first(corpus, max_bytes), trainer=trainer)
    found = tokenizer.get_vocab_size()
    if found < vocab_size:
        raise InvalidCorpus(
            f"the corpus yields only {found} tokens, fewer than model.vocab_size {vocab_size}: lower it, or give more "
            "text (data.max_bytes, tokenizer.max_bytes)"
        )
    return tokenizer


def _first(corpus: Corpus, max_bytes: int) -> Iterator[str]:
    left = max_bytes
    for document in corpus.training:  # held-out text would choose tokens that suit it
        if left <= 0:
            return
        yield document[:left]  # characters, of one byte or more: the last document alone goes beyond
        left -= len(document.encode())
