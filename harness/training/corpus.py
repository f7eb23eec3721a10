"""Text to train on: documents in an order that does not depend on the machine's, and a held-out share of them.

A document is a file or a row of a dataset. Equal documents count once, so that none is both trained on and held out:
site-packages repeat licences. Which are held out depends on the documents' content alone. Needs no torch.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.training.config import DataSettings
from harness.training.dataset import InvalidCorpus, dataset_documents

__all__ = ["Corpus", "InvalidCorpus", "read_corpus"]

TEXT_SUFFIXES = (".py", ".md", ".rst", ".txt")
LARGEST_INSTALLED_BYTES = 1 << 20  # what is larger among installed sources is a table that a program wrote


@dataclass(frozen=True)
class Corpus:
    """Documents, and a digest of all that makes two corpora the same tokens."""

    training: tuple[str, ...]
    held_out: tuple[str, ...]
    digest: str

    @property
    def description(self) -> str:
        size = sum(len(document.encode()) for document in (*self.training, *self.held_out))
        return f"{len(self.training)} documents and {len(self.held_out)} held out, {size / 1e6:.1f} MB"


def read_corpus(data: DataSettings) -> Corpus:
    """The corpus of `data`. Raises InvalidCorpus if it has no text, or too few documents to hold one out."""
    if data.dataset is not None:
        documents, origin = dataset_documents(data), f"data.dataset {data.dataset}"
    elif data.text is not None:
        documents, origin = _texts(_named_files(data.text)), f"data.text {', '.join(data.text)}"
    else:
        documents, origin = _texts(installed_files()), "the Python installation"
    chosen: dict[str, str] = {}  # digest -> document
    left = data.max_bytes
    for document in documents:
        encoded = document.encode("utf-8", errors="replace")[:left]  # the last one is cut: the limit is exact
        text = encoded.decode("utf-8", errors="ignore")
        digest = hashlib.sha256(encoded).hexdigest()
        if text.strip() and digest not in chosen:
            chosen[digest] = text
            left -= len(encoded)
            if left <= 0:
                break
    if not chosen:
        raise InvalidCorpus(
            f"the corpus is empty: {origin} has no text (of directories {', '.join(TEXT_SUFFIXES)} files are read, "
            "and only UTF-8)"
        )
    return _split(chosen, data)


def _split(chosen: dict[str, str], data: DataSettings) -> Corpus:
    """Holds out the documents with the smallest digests: a fixed share, and always at least one."""
    if len(chosen) < 2:
        raise InvalidCorpus("the corpus has 1 document; whole documents are held out, so it needs 2 or more")
    count = min(len(chosen) - 1, max(1, round(data.held_out_fraction * len(chosen))))
    held_out = set(sorted(chosen)[:count])
    key = "\n".join([*(d for d in chosen if d not in held_out), "held out", *(d for d in chosen if d in held_out)])
    return Corpus(
        training=tuple(text for digest, text in chosen.items() if digest not in held_out),
        held_out=tuple(text for digest, text in chosen.items() if digest in held_out),
        digest=hashlib.sha256(key.encode()).hexdigest(),
    )


def installed_files() -> list[Path]:
    """Sources and documentation of the running Python and of its packages, in an order drawn from their names.

    A drawn order makes the first `max_bytes` a sample of everything, not the beginning of the alphabet.
    """
    paths = sysconfig.get_paths()
    found: dict[str, Path] = {}
    for root in dict.fromkeys(Path(paths[key]) for key in ("stdlib", "purelib", "platlib")):
        below = {"site-packages", "dist-packages"} if root == Path(paths["stdlib"]) else set()
        for file in _files_below(root, below):
            if file.stat().st_size <= LARGEST_INSTALLED_BYTES:
                found.setdefault(file.relative_to(root).as_posix(), file)
    return [found[name] for name in sorted(found, key=lambda name: hashlib.sha256(name.encode()).digest())]


def _named_files(names: Iterable[str]) -> Iterator[Path]:
    for path in map(Path, names):
        yield from _files_below(path, set()) if path.is_dir() else [path]


def _files_below(root: Path, skipped: set[str]) -> Iterator[Path]:
    """Text files below `root`, by name; without hidden directories and links."""
    for directory, below, names in os.walk(root):
        below[:] = sorted(name for name in below if name not in skipped and not name.startswith("."))
        for name in sorted(names):
            path = Path(directory, name)
            if name.endswith(TEXT_SUFFIXES) and path.is_file():  # and no dangling link
                yield path


def _texts(files: Iterable[Path]) -> Iterator[str]:
    for path in files:
        try:
            yield path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # Python's own tests have sources in many encodings
            continue
