"""Text: what is read, in which order, and what is held out."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.training.config import DataSettings
from harness.training.corpus import InvalidCorpus, installed_files, read_corpus


def test_the_split_depends_on_the_documents_alone(tmp_path: Path) -> None:
    texts = [f"document {k}\n" * 5 for k in range(20)]
    corpora = []
    for place, order in (("a", texts), ("b", texts[::-1])):
        (tmp_path / place).mkdir()
        for number, text in enumerate(order):
            (tmp_path / place / f"{number:02d}.md").write_text(text)
        corpora.append(read_corpus(DataSettings(text=[str(tmp_path / place)], held_out_fraction=0.2)))
    first, second = corpora
    assert len(first.held_out) == 4
    assert set(first.held_out) == set(second.held_out)
    assert sorted([*first.training, *first.held_out]) == sorted(texts)
    assert first.digest != second.digest  # another order is another stream of tokens
    assert read_corpus(DataSettings(text=[str(tmp_path / "a")], held_out_fraction=0.2)) == first


def test_equal_documents_count_once_and_others_are_not_text(tmp_path: Path) -> None:
    (tmp_path / ".hidden").mkdir()
    for name, content in {
        "a.txt": b"one", "b.txt": b"one", "c.rst": b"two", "d.py": b"three", "e.bin": b"four",
        "f.txt": b"\xff\xfe", "g.txt": b"  \n", ".hidden/h.txt": b"five",
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
    corpus = read_corpus(DataSettings(text=[str(tmp_path)]))
    assert sorted([*corpus.training, *corpus.held_out]) == ["one", "three", "two"]


def test_the_limit_is_exact_and_cuts_no_character(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text(f"{number}" + "é" * 10)  # 21 bytes
    corpus = read_corpus(DataSettings(text=[str(tmp_path)], max_bytes=50))
    documents = [*corpus.training, *corpus.held_out]
    assert sorted(len(d.encode()) for d in documents) == [7, 21, 21]  # 8 bytes would be half of an é
    assert "�" not in "".join(documents)


def test_the_installation_is_read_in_a_drawn_order_that_repeats() -> None:
    files = installed_files()
    assert files == installed_files()
    assert len(files) > 1000
    assert files != sorted(files)
    assert any("site-packages" in f.parts or "dist-packages" in f.parts for f in files[:500])
    assert any(f.name == "argparse.py" for f in files)
    data = DataSettings(max_bytes=300_000)
    corpus = read_corpus(data)
    assert corpus == read_corpus(data)
    assert sum(len(d.encode()) for d in (*corpus.training, *corpus.held_out)) == pytest.approx(300_000, abs=4)


def test_text_that_cannot_be_trained_on(tmp_path: Path) -> None:
    with pytest.raises(InvalidCorpus, match=f"the corpus is empty: data.text {tmp_path} has no text"):
        read_corpus(DataSettings(text=[str(tmp_path)]))
    (tmp_path / "a.txt").write_text("alone")
    with pytest.raises(InvalidCorpus, match="has 1 document; whole documents are held out"):
        read_corpus(DataSettings(text=[str(tmp_path)]))


def test_rows_of_a_parquet_file_are_documents(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"id": [1, 2, 3], "content": ["first", "second", None]}), path)
    corpus = read_corpus(DataSettings(dataset=str(path), text_column="content"))
    assert sorted([*corpus.training, *corpus.held_out]) == ["first", "second"]
    with pytest.raises(InvalidCorpus) as caught:
        read_corpus(DataSettings(dataset=str(path), text_column="contents"))
    assert "has no column 'contents', did you mean 'content'? (data.text_column is one of: id, content)" in str(
        caught.value
    )
    with pytest.raises(InvalidCorpus, match=r"column 'id' of data.dataset .* holds int, not text \(row 0\)"):
        read_corpus(DataSettings(dataset=str(path), text_column="id"))


def test_rows_of_a_json_file_are_documents(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "first"}\n{"text": "second"}\n')
    corpus = read_corpus(DataSettings(dataset=str(path)))
    assert sorted([*corpus.training, *corpus.held_out]) == ["first", "second"]
    path.write_text("this is no JSON\n")
    with pytest.raises(InvalidCorpus, match="cannot be read"):
        read_corpus(DataSettings(dataset=str(path)))


def test_datasets_are_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InvalidCorpus, match=r"pip install 'linear-cross-entropy-bench\[huggingface\]'"):
        read_corpus(DataSettings(dataset="someone/something"))
