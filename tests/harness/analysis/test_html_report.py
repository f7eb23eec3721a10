"""report.html without a browser: well-formed, complete, accessible, and sufficient unto itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path

import pytest

from harness.analysis.formats import mib, ms
from harness.analysis.frame import read_records
from harness.analysis.html import html_report
from harness.analysis.report import render, write_report
from harness.analysis.row import Row
from harness.analysis.rows import Rows
from harness.record import Record

ROOT = Path(__file__).parents[3]
MakeRecord = Callable[..., Record]
WriteRun = Callable[[list[Record]], Path]
VOID = {"meta", "br", "hr", "img", "link", "input"}
IN_THE_LEGEND = {"gradient_floor_bytes", "gemm_tflops", "max_excess"}  # the same for a whole table


class Page(HTMLParser):
    """Checks nesting; keeps attributes by tag, and every table as rows of (text, data-value)."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.tables: list[list[list[tuple[str, str]]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append((tag, found))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append(("", found.get("data-value", "")))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if {"td", "th"} & set(self.open):
            text, value = self.tables[-1][-1][-1]
            self.tables[-1][-1][-1] = (text + data, value)

    def attributes(self, tag: str) -> list[dict[str, str]]:
        return [found for name, found in self.tags if name == tag]


@pytest.fixture
def records(make_record: MakeRecord) -> list[Record]:
    return [
        make_record("lower-bound", analytic=True, ms=None, error=None, mib=(0, 1161, 1161)),
        make_record("baseline"),
        make_record("liger", ms=(110, 0.5), grads_in_forward=True),
        make_record("cce", "disagrees", ms=(20, 30), reason="off by <b> & more: `pkg`", label_smoothing=0.1),
        make_record("liger-cutedsl", "unavailable", softcap=30.0),
    ]


@pytest.mark.parametrize("name", ["gemma2-h200", "numerics-h200"])
def test_every_row_and_number_of_real_records_is_in_it(name: str) -> None:
    records = read_records(ROOT / "reports" / name)
    page = Page(html_report(records))
    cells = [row for table in page.tables for row in table[1:]]
    assert len(cells) == len(records)
    assert len(page.tables) > 1
    values_of_rows = [{value for _, value in row} for row in cells]
    rows = Rows(records)
    for record in records:
        row = rows.of(record)
        wanted = {str(value) for value in numbers(row)} | {record.implementation, record.status.replace("_", " ")}
        if row.analytic:
            wanted.discard("ok")
        assert any(wanted <= values for values in values_of_rows), (row.case, row.implementation)


def numbers(row: Row) -> list[float]:
    """What a row measured, in the units of the page."""
    found = []
    for field in fields(Row):
        value = getattr(row, field.name)
        if value is None or not str(field.type).startswith(("float |", "int |")):
            continue
        if field.name not in IN_THE_LEGEND | {"softcap"}:  # a caption names the softcap
            found.append(value / 2**20 if field.name.endswith("_bytes") else value)
    return found


def test_cells_are_written_as_in_the_markdown_report(records: list[Record]) -> None:
    page = Page(html_report(records))
    heads = [text for text, _ in page.tables[0][0]]
    rows = {row[0][0]: dict(zip(heads, row, strict=True)) for row in page.tables[0][1:]}
    assert rows["baseline"]["fwd+bwd ms"] == (ms(64.5), "64.5")
    assert rows["baseline"]["fwd+bwd MiB"] == (mib(28000 * 2**20), "28000.0")
    assert rows["cce"]["fwd+bwd ms"] == ("(50.0)", "50.0")
    assert rows["cce"]["status"] == ("disagrees", "disagrees")
    assert rows["cce"]["reason"][0] == "off by <b> & more: pkg"
    assert rows["liger †"]["implementation"] == ("liger †", "liger")
    assert rows["lower-bound"]["status"][0] == "computed"
    assert rows["lower-bound"]["fwd+bwd ms"] == ("—", "")


def test_only_what_varies_or_exists_has_a_column(records: list[Record], make_record: MakeRecord) -> None:
    heads = [text for text, _ in Page(html_report(records)).tables[0][0]]
    assert {"N", "D", "V", "seed", "bias error"}.isdisjoint(heads)
    untimed = [make_record(ms=None, mib=None, gemm_ms=None, tokens=tokens) for tokens in (512, 1024)]
    (table,) = Page(html_report(untimed)).tables  # agreement only: a table per dtype and inputs
    heads = [text for text, _ in table[0]]
    assert "N" in heads
    assert {"fwd+bwd ms", "fwd+bwd MiB", "V"}.isdisjoint(heads)


def test_it_can_be_read_without_eyes(records: list[Record], write_run: WriteRun) -> None:
    run = write_run(records)
    write_report(run)
    text = (run / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.attributes("html") == [{"lang": "en"}]
    assert len(page.attributes("caption")) == len(page.attributes("table")) == 2
    assert {found["scope"] for found in page.attributes("th")} == {"col", "row"}
    assert len(page.attributes("button")) == len([f for f in page.attributes("th") if f["scope"] == "col"])
    pictures = page.attributes("svg")
    assert len(pictures) == len(page.attributes("figcaption")) == 3
    assert all(found["role"] == "img" and len(found["aria-label"]) > 20 for found in pictures)


def test_it_needs_nothing_from_outside(records: list[Record], write_run: WriteRun) -> None:
    run = write_run(records)
    write_report(run)
    text = (run / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert re.findall(r"https?://", text) == []  # not even a namespace
    assert {"link", "img", "iframe", "object"}.isdisjoint(tag for tag, _ in page.tags)
    for tag, found in page.tags:
        for name in ("src", "href", "xlink:href"):
            assert found.get(name, "#").startswith("#"), (tag, found)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    assert "default-src 'none'" in page.attributes("meta")[1]["content"]


def test_ids_are_unique_and_every_reference_has_its_target(records: list[Record], write_run: WriteRun) -> None:
    run = write_run(records)
    write_report(run)
    text = (run / "report.html").read_text(encoding="utf-8")
    ids = [found["id"] for _, found in Page(text).tags if "id" in found]
    assert len(ids) == len(set(ids))
    targets = set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text))
    assert targets <= set(ids)


def test_the_same_records_give_the_same_page(records: list[Record], write_run: WriteRun) -> None:
    run = write_run(records)
    write_report(run)
    first = (run / "report.html").read_bytes()
    write_report(run)
    assert (run / "report.html").read_bytes() == first == (render(run, "html") + "\n").encode()


def test_no_records_yet() -> None:
    page = Page(html_report([], ["**0 of 3 planned cases measured**; continue with: `harness`"]))
    assert "No records yet" in page.words
    assert page.tables == []
