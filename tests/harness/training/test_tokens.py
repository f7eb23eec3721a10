"""Tokenizer, encoded text and batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from harness.training import tokenizer as tokenizer_module
from harness.training.batches import batch, check_lengths, encode, evaluation_windows, token_files
from harness.training.corpus import Corpus, InvalidCorpus, read_corpus
from harness.training.tokenizer import END_OF_DOCUMENT, tokenizer_of, train_tokenizer

MANY_BYTES = 10**6


@pytest.fixture
def corpus(toy) -> Corpus:
    return read_corpus(toy().data)


def test_a_tokenizer_has_the_models_size_and_loses_nothing(corpus: Corpus) -> None:
    tokenizer = train_tokenizer(corpus, 300, MANY_BYTES)
    assert tokenizer.get_vocab_size() == 300
    for text in (corpus.held_out[0], "  spaces\n\ttabs, Ünicode and 🎈"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert len(tokenizer.encode(corpus.held_out[0]).ids) < len(corpus.held_out[0])
    assert tokenizer.to_str() == train_tokenizer(corpus, 300, MANY_BYTES).to_str()


def test_a_tokenizer_is_trained_once(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tokenizer_of(corpus, 300, MANY_BYTES, tmp_path / "new")

    def forbidden(*arguments: object) -> Tokenizer:
        raise AssertionError("trained again")

    monkeypatch.setattr(tokenizer_module, "train_tokenizer", forbidden)
    assert tokenizer_of(corpus, 300, MANY_BYTES, tmp_path / "new").to_str() == first.to_str()
    for other in (
        lambda: tokenizer_of(corpus, 301, MANY_BYTES, tmp_path / "new"),
        lambda: tokenizer_of(corpus, 300, MANY_BYTES - 1, tmp_path / "new"),
        lambda: tokenizer_of(Corpus(corpus.training, (), "another digest"), 300, MANY_BYTES, tmp_path / "new"),
    ):
        with pytest.raises(AssertionError, match="trained again"):
            other()


def test_a_vocabulary_beyond_the_text(corpus: Corpus) -> None:
    with pytest.raises(InvalidCorpus, match=r"yields only \d+ tokens, fewer than model.vocab_size 50000: lower it"):
        train_tokenizer(corpus, 50000, MANY_BYTES)


def test_encoded_text_is_the_documents_and_stays(corpus: Corpus, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(corpus, 300, MANY_BYTES)
    files = token_files(tmp_path, "key")
    assert not files.exist()
    encode(corpus, tokenizer, files)
    for documents, tokens in ((corpus.training, files.training()), (corpus.held_out, files.held_out())):
        text = tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
        assert text == END_OF_DOCUMENT.join([*documents, ""])
    encode(Corpus(("other",), ("text",), ""), tokenizer, files)
    assert len(files.training()) > 100
    assert not list(tmp_path.glob("*.new"))


def test_a_text_shorter_than_a_window(corpus: Corpus, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(corpus, 300, MANY_BYTES)
    files = token_files(tmp_path, "key")
    encode(Corpus(("ab " * 99,), ("a",), ""), tokenizer, files)
    with pytest.raises(InvalidCorpus, match=r"the held-out text is 2 tokens, fewer than model.context \+ 1 = 17"):
        check_lengths(files, 16)


def test_batches_are_a_function_of_seed_and_step() -> None:
    tokens = np.arange(1000, dtype=np.uint32)
    later_first = [batch(tokens, 7, step, 4, 16) for step in (5, 2)]
    in_order = [batch(tokens, 7, step, 4, 16) for step in (2, 3, 4, 5)]
    assert (later_first[0] == in_order[3]).all()
    assert (later_first[1] == in_order[0]).all()
    assert (in_order[0] != in_order[1]).any()
    assert (batch(tokens, 8, 2, 4, 16) != in_order[0]).any()
    assert in_order[0].shape == (4, 17)
    assert in_order[0].dtype == np.int64
    assert (np.diff(in_order[0], axis=1) == 1).all()  # windows of neighbours


def test_batches_reach_both_ends_of_the_text() -> None:
    tokens = np.arange(20, dtype=np.uint32)
    drawn = np.concatenate([batch(tokens, 0, step, 8, 16) for step in range(20)])
    assert drawn.min() == 0
    assert drawn.max() == 19
    assert (batch(tokens[:17], 0, 1, 2, 16) == np.arange(17)).all()


def test_every_held_out_target_counts_once() -> None:
    windows = evaluation_windows(np.arange(100, dtype=np.uint32), 16, 64)
    assert windows[:, 1:].flatten().tolist() == list(range(1, 65))
    assert len(evaluation_windows(np.arange(100, dtype=np.uint32), 16, 10**6)) == 6
    assert len(evaluation_windows(np.arange(17, dtype=np.uint32), 16, 1)) == 1
