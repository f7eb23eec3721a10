"""Documents of a Hugging Face dataset, one per row: the optional way to text. Imports `datasets` when it is used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.training.config import LOCAL_DATASETS, DataSettings
from harness.yaml_source import nearest


class InvalidCorpus(ValueError):
    """Text that nothing can be trained on; one clear sentence."""


def dataset_documents(data: DataSettings) -> Iterator[str]:
    """The text column of `data.dataset`, row after row, streamed: only what is used is read or downloaded.

    Raises InvalidCorpus without the package, for a dataset that cannot be had, and for a column that is not there or
    holds no text.
    """
    for number, row in enumerate(_rows(data)):
        if data.text_column not in row:
            columns = list(row)
            raise InvalidCorpus(
                f"data.dataset {data.dataset} has no column '{data.text_column}'{nearest(data.text_column, columns)} "
                f"(data.text_column is one of: {', '.join(columns)})"
            )
        text = row[data.text_column]
        if not isinstance(text, str | None):
            raise InvalidCorpus(
                f"column '{data.text_column}' of data.dataset {data.dataset} holds {type(text).__name__}, not text "
                f"(row {number})"
            )
        yield text or ""


def _rows(data: DataSettings) -> Iterator[dict[str, Any]]:
    try:
        import datasets  # type: ignore[import-untyped]  # noqa: PLC0415  (an optional extra, and slow to import)
    except ImportError as error:
        raise InvalidCorpus(
            "data.dataset needs the package datasets: pip install 'linear-cross-entropy-bench[huggingface]'"
        ) from error
    name = str(data.dataset)
    builder = LOCAL_DATASETS.get(Path(name).suffix)
    try:
        if builder is not None:
            yield from datasets.load_dataset(builder, data_files=name, split="train", streaming=True)
        else:
            yield from datasets.load_dataset(name, data.subset, split=data.split, streaming=True)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:  # no network, no such name or split
        raise InvalidCorpus(f"data.dataset {name} cannot be read: {' '.join(str(error).split())}") from error
