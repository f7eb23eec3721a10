"""The report as one HTML file: sortable tables, pictures inline, no network; made from the same rows as report.md."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from harness.analysis import formats
from harness.analysis.footnotes import explanation, status_words
from harness.analysis.formats import DASH, MIB, inputs, number, setting
from harness.analysis.grid import is_agreement_only
from harness.analysis.heading import heading
from harness.analysis.legend import IN_FORWARD, legend
from harness.analysis.pictures.inline import inline_svg
from harness.analysis.row import Row
from harness.analysis.rows import Rows
from harness.analysis.section import by_setting
from harness.record import Record, Status

Value = str | float | int | None


@dataclass(frozen=True)
class Column:
    """A column: its head, what a cell sorts by, and how that is written."""

    head: str
    value: Callable[[Record, Row], Value]
    written: Callable[..., str] = str
    is_time: bool = False  # in parentheses where the row is not ok
    varying: bool = False  # shown only where it varies within the table: the caption says the rest


def _mib(name: str) -> Callable[[Record, Row], Value]:
    return lambda _, row: None if (size := getattr(row, name)) is None else size / MIB


def _field(name: str) -> Callable[[Record, Row], Value]:
    return lambda _, row: getattr(row, name)


def _size(value: float) -> str:
    return formats.mib(round(value * MIB))


COLUMNS = (
    Column("implementation", _field("implementation")),
    Column("N", _field("tokens"), varying=True),
    Column("D", _field("hidden_size"), varying=True),
    Column("V", _field("vocab_size"), varying=True),
    Column("β", _field("label_smoothing"), number),
    Column("softcap", _field("softcap"), number, varying=True),
    Column("ignored", _field("ignored_fraction"), number, varying=True),
    Column("reduction", _field("reduction"), varying=True),
    Column("bias", lambda _, row: "yes" if row.linear_bias else "no", varying=True),
    Column("seed", _field("seed"), varying=True),
    Column("fwd MiB", _mib("fwd_peak_bytes"), _size),
    Column("fwd ms", _field("fwd_ms"), formats.ms, is_time=True),
    Column("bwd MiB", _mib("bwd_peak_bytes"), _size),
    Column("bwd ms", _field("bwd_ms"), formats.ms, is_time=True),
    Column("fwd+bwd MiB", _mib("fwd_bwd_peak_bytes"), _size),
    Column("fwd+bwd ms", _field("fwd_bwd_ms"), formats.ms, is_time=True),
    Column("time in GEMMs", _field("fwd_bwd_gemms"), formats.ratio, is_time=True),
    Column("to reference", _field("fwd_bwd_to_reference"), formats.three_places, is_time=True),
    Column("its low end", _field("fwd_bwd_to_reference_low"), formats.three_places, is_time=True),
    Column("its high end", _field("fwd_bwd_to_reference_high"), formats.three_places, is_time=True),
    Column("of floor", _field("fwd_bwd_floor_share"), formats.share, is_time=True),
    Column("peak / floor", _field("fwd_bwd_peak_to_floor"), formats.ratio),
    Column("dE error", _field("grad_input_error"), formats.error),
    Column("dC error", _field("grad_weight_error"), formats.error),
    Column("dE excess", _field("grad_input_excess"), formats.ratio),
    Column("dC excess", _field("grad_weight_excess"), formats.ratio),
    Column("no-grad fwd ms", _field("fwd_no_grad_ms"), formats.ms, is_time=True),
    Column("status", lambda record, row: "computed" if row.analytic else status_words(record.status)),
    Column("reason", lambda record, _: explanation(record)),
    # what report.md has no room for
    Column("bias error", _field("grad_bias_error"), formats.error),
    Column("bias excess", _field("grad_bias_excess"), formats.ratio),
    Column("loss error", _field("loss_error"), formats.error),
    Column("loss limit", _field("loss_limit"), formats.error),
    Column("dE row error p99", _field("grad_input_row_error_p99"), formats.error),
    Column("dC row error p99", _field("grad_weight_row_error_p99"), formats.error),
    Column("sampled rows of dC", _field("sampled_rows")),
    Column("no-grad fwd MiB", _mib("fwd_no_grad_peak_bytes"), _size),
    Column("retained MiB", _mib("retained_bytes"), _size),
    Column("samples", lambda _, row: row.samples or None),
    Column("rounds", lambda _, row: row.rounds or None),
    Column("of fwd+bwd amortised ms", lambda _, row: row.amortised_ms or None, formats.ms),
    Column("fwd+bwd ms, low end", _field("fwd_bwd_ms_low"), formats.ms),
    Column("fwd+bwd ms, high end", _field("fwd_bwd_ms_high"), formats.ms),
    Column("time in GEMMs, low end", _field("fwd_bwd_gemms_low"), formats.ratio),
    Column("time in GEMMs, high end", _field("fwd_bwd_gemms_high"), formats.ratio),
    Column("noise", _field("noise"), formats.percent),
    Column("TFLOP/s", _field("fwd_bwd_tflops"), formats.ratio),
    Column("GB/s", _field("fwd_bwd_gb_per_s"), formats.ratio),
    Column("floor ms", _field("fwd_bwd_floor_ms"), formats.ms),
    Column("GEMM ms", _field("gemm_ms"), formats.ms),
    Column("copy GB/s", _field("copy_gb_per_s"), formats.ratio),
    Column("first call s", _field("first_call_s"), formats.seconds),
    Column("settled in s", _field("settle_s"), formats.seconds),
)


_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1500px; padding: 1em; }
h1, h2 { line-height: 1.2; }
figure { background: #fff; color: #222; border-radius: 6px; margin: 1em 0; max-width: 900px; padding: .8em; }
figure svg { display: block; height: auto; width: 100%; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
caption { text-align: left; } caption h2 { font-size: 16px; margin: 2em 0 .5em; }
th, td { border-bottom: 1px solid color-mix(in srgb, CanvasText 20%, Canvas); padding: .2em .6em; text-align: right; }
th:first-child, td.text { text-align: left; } td { white-space: nowrap; }
td.reason { min-width: 48em; text-align: left; white-space: normal; }
tbody th { background: Canvas; font-weight: 500; left: 0; position: sticky; white-space: nowrap; }
tbody tr:hover > * { background: color-mix(in srgb, CanvasText 8%, Canvas); }
tr.not-ok { color: color-mix(in srgb, CanvasText 62%, Canvas); }
thead button { background: none; border: 0; color: inherit; cursor: pointer; font: inherit; padding: 0; }
th[aria-sort=ascending] button::after { content: " \\25b2"; }
th[aria-sort=descending] button::after { content: " \\25bc"; }
"""

# report.html#sort=table-1,11,ascending opens sorted, so that a view can be linked to
_SCRIPT = """
"use strict";
function sortTable(table, column, direction) {
  const sign = direction === "descending" ? -1 : 1, body = table.tBodies[0];
  const heads = table.tHead.rows[0].cells;
  const key = row => row.cells[column].dataset.value;
  const compare = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === "");  // what has no number comes last either way
    const [p, q] = [Number(x), Number(y)];
    return sign * (Number.isNaN(p) || Number.isNaN(q) ? x.localeCompare(y) : p - q);
  };
  body.append(...Array.from(body.rows).sort(compare));
  for (const head of heads) head.removeAttribute("aria-sort");
  heads[column].setAttribute("aria-sort", direction);
}
document.addEventListener("click", event => {
  const head = event.target.closest("thead th");
  if (!head) return;
  const direction = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
  sortTable(head.closest("table"), head.cellIndex, direction);
});
function sortAsAsked() {
  const [, id, column, direction] = location.hash.match(/^#sort=([\\w-]+),(\\d+),(ascending|descending)$/) || [];
  const table = id && document.getElementById(id);
  if (table && table.tHead.rows[0].cells[column]) sortTable(table, Number(column), direction);
}
window.addEventListener("hashchange", sortAsAsked);
sortAsAsked();
"""


def html_report(
    records: Sequence[Record], coverage: Sequence[str] = (), pictures: Mapping[str, str] | None = None
) -> str:
    """All records as one HTML document; `pictures` are SVG documents by their captions. No newline at the end."""
    head = heading(records, coverage) if records else ["# No records yet", *(f"- {line}" for line in coverage)]
    title = escape(head[0].removeprefix("# "))
    body = [f"<h1>{title}</h1>", *_prose(head[1:])]
    tables, rows = _tables(records), Rows(records)
    links = {f"picture-{place}": caption for place, caption in enumerate(pictures or {}, start=1)}
    links |= {f"table-{place}": caption for place, caption in enumerate(tables, start=1)}
    contents = "".join(f'<li><a href="#{name}">{escape(caption)}</a></li>' for name, caption in links.items())
    body.append(f'<nav aria-label="contents"><ol>{contents}</ol></nav>')
    body += [_figure(place, *picture) for place, picture in enumerate((pictures or {}).items(), start=1)]
    if tables:
        body.append(
            "<p>A click on a column's head sorts by it. (Times) in parentheses are of rows that are not ok.</p>"
        )
    for place, (caption, group) in enumerate(tables.items(), start=1):
        body.append(_table(f"table-{place}", caption, group, rows))
        body += _prose(legend(group, rows))
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"  # nothing from outside
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>",
            *body,
            f"</main>\n<script>{_SCRIPT}</script>\n</body>\n</html>",
        ]
    )


def _tables(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Which rows share a table, by its caption: those of a setting; of a dtype and inputs if nothing was timed."""
    if not is_agreement_only(records):
        return {setting(case): group for case, group in by_setting(records).items()}
    tables: dict[str, list[Record]] = {}
    for record in records:
        tables.setdefault(f"{record.case.dtype}, {inputs(record.case)}", []).append(record)
    return tables


def _table(name: str, caption: str, records: Sequence[Record], all_rows: Rows) -> str:
    rows = [(record, all_rows.of(record)) for record in records]
    columns = [column for column in COLUMNS if _is_shown(column, {column.value(*row) for row in rows})]
    heads = "".join(f'<th scope="col"><button type="button">{escape(c.head)}</button></th>' for c in columns)
    lines = [
        f'<div class="scroll"><table id="{name}">',
        f"<caption><h2>{escape(caption)}</h2></caption>",
        f"<thead><tr>{heads}</tr></thead>\n<tbody>",
    ]
    for record, row in rows:
        shade = "" if record.status is Status.OK else ' class="not-ok"'
        lines.append(f"<tr{shade}>" + "".join(_cell(column, record, row) for column in columns) + "</tr>")
    return "\n".join([*lines, "</tbody></table></div>"])


def _is_shown(column: Column, values: set[Value]) -> bool:
    return len(values) > 1 if column.varying else values != {None}


def _cell(column: Column, record: Record, row: Row) -> str:
    value = column.value(record, row)
    words = DASH if value is None else column.written(value)
    if column.is_time and value is not None and record.status is not Status.OK:
        words = f"({words})"
    key = "" if value is None else escape(str(value))  # in full, and what the script sorts by
    if column.head == "implementation":
        mark = f" {IN_FORWARD}" if record.grads_in_forward else ""
        return f'<th scope="row" data-value="{key}">{escape(words)}{mark}</th>'
    if column.head == "reason":  # is long: its first words are enough to sort by
        return f'<td class="reason" data-value="{escape(str(value or "")[:40])}">{_marked(words)}</td>'
    kind = ' class="text"' if isinstance(value, str) else ""
    return f'<td{kind} data-value="{key}">{escape(words)}</td>'


def _figure(place: int, caption: str, svg: str) -> str:
    words = escape(caption)
    return (
        f'<figure id="picture-{place}">\n'
        f"{inline_svg(svg, f'picture-{place}', words)}\n<figcaption>{words}</figcaption>\n</figure>"
    )


def _prose(lines: Sequence[str]) -> list[str]:
    """The report's own lines: `- ` begins an item of a list, all else is a paragraph."""
    items = "".join(f"<li>{_marked(line[2:])}</li>" for line in lines if line.startswith("- "))
    paragraphs = [f"<p>{_marked(line)}</p>" for line in lines if line and not line.startswith("- ")]
    return ([f"<ul>{items}</ul>"] if items else []) + paragraphs


def _marked(text: str) -> str:
    """Escaped, with **bold** and `code` as elements."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escape(text)))
