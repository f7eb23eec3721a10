"""Every number of the README's table is a number of a record."""

from __future__ import annotations

import importlib.util
import re
from decimal import Decimal
from pathlib import Path

import pytest

from harness.analysis.frame import read_records
from harness.analysis.rows import Rows

README = Path("README.md").read_text()
ORIGIN = re.compile(r"<!-- from (\S+), case (\S+); .*?-->\n((?:\|.*\n)+)")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_the_table_is_in_the_records() -> None:
    ((directory, case, table),) = ORIGIN.findall(README)
    records = [r for r in read_records(Path(directory)) if r.case_id == case]
    measured = {row.implementation: row for row in Rows(records)}
    for line in table.splitlines()[2:]:
        name, time_ms, gemms, peak_mib, grad_input, grad_weight, excess, status = cells(line)
        row = measured.pop(name.split(" (")[0])
        assert row.status == status
        if row.samples == 0:
            assert {time_ms, gemms, peak_mib, grad_input, grad_weight, excess} == {"—"}
            continue
        input_excess, weight_excess = excess.split(" / ")
        assert (row.status != "ok") == time_ms.startswith("(")
        for text, value in (
            (time_ms, row.fwd_bwd_ms),
            (gemms, row.fwd_bwd_gemms),
            (peak_mib, (row.fwd_bwd_peak_bytes or 0) / 2**20),
            (grad_input, row.grad_input_error),
            (grad_weight, row.grad_weight_error),
            (input_excess, row.grad_input_excess),
            (weight_excess, row.grad_weight_excess),
        ):
            shown = Decimal(text.strip("()"))
            half_a_digit = 0.5001 * 10 ** shown.as_tuple().exponent
            assert float(shown) == pytest.approx(value, abs=half_a_digit), name
    assert [row.implementation for row in measured.values() if not row.analytic] == []  # no row is left out


HEADS = re.compile(r"<!-- heads from (\S+), β = (\S+); .*?-->\n((?:\|.*\n)+)")


def test_the_heads_are_in_the_records() -> None:
    ((directory, beta, table),) = HEADS.findall(README)
    rows = [row for row in Rows(read_records(Path(directory))) if row.label_smoothing == float(beta)]
    lines = table.splitlines()[2:]
    assert len(lines) == len({row.vocab_size for row in rows})  # no head is left out
    for line in lines:
        head, *shown = cells(line)
        sizes = [int(number) for number in re.findall(r"[VD] (\d+)", head)]
        of = {row.implementation: row for row in rows if [row.vocab_size, row.hidden_size] == sizes}
        timed = [of[name] for name in ("ours", "ours-exact", "torch-compile", "baseline", "liger")]
        for row, text in zip(timed, shown[1:6], strict=True):
            assert row.status == ("disagrees" if text.startswith("(") else "ok"), (head, row.implementation)
        ours, _, *peers = timed
        measured = (
            ours.fwd_bwd_ms, *(row.fwd_bwd_gemms for row in timed),
            *(row.fwd_bwd_peak_bytes / 2**20 for row in (ours, *peers)),
            ours.grad_input_excess, ours.grad_weight_excess,
        )  # fmt: skip
        for text, value in zip((*shown[:-1], *shown[-1].split(" / ")), measured, strict=True):
            number = Decimal(text.strip("()"))
            half_a_digit = 0.5001 * 10 ** number.as_tuple().exponent
            assert float(number) == pytest.approx(value, abs=half_a_digit), (head, text)


def test_every_loss_of_that_table_is_right() -> None:
    ((directory, case, _),) = ORIGIN.findall(README)
    judged = [r.agreement for r in read_records(Path(directory)) if r.case_id == case and r.agreement]
    assert len(judged) >= 7
    assert all(a.loss_error is not None and a.loss_error <= a.loss_limit for a in judged)


def test_what_is_said_of_liger() -> None:
    ((directory, _, _),) = ORIGIN.findall(README)
    rows = [r.agreement for r in read_records(Path(directory)) if r.implementation == "liger" and r.agreement]
    excesses = sorted(max(a.grad_input_excess or 0, a.grad_weight_excess or 0) for a in rows)
    assert (len(excesses), sum(e > 4 for e in excesses)) == (7, 3)
    assert (f"{excesses[0]:.1f}", f"{excesses[-1]:.1f}") == ("1.3", "5.5")


def test_what_is_said_of_rows_without_a_target() -> None:
    ((directory, case, _),) = ORIGIN.findall(README)
    found = {r.implementation: r.agreement for r in read_records(Path(directory)) if r.case_id == case}
    words = " ".join(README.split())
    assert "2.3 % in the median and 16 % for one in a hundred (eager 0.2 and 0.7 %, Liger 0.8 and 3.4 %)" in words
    assert "5.6 % in one AdamW step from zero (0.6 %, 1.1 %)" in words
    percents = []
    for name in ("ours", "baseline", "liger"):
        agreement = found[name]
        assert agreement is not None and agreement.diagnostics is not None
        looked = agreement.diagnostics
        percents += [looked.cold_row_error_median, looked.cold_row_error_p99, looked.adamw_step_error]
    said = ("2.3", "16", "5.6", "0.2", "0.7", "0.6", "0.8", "3.4", "1.1")
    for text, value in zip(said, percents, strict=True):
        assert float(text) == pytest.approx(100 * value, abs=0.5001 * 10 ** Decimal(text).as_tuple().exponent)


def test_links_lead_somewhere() -> None:
    for path in (Path("README.md"), Path("CONTRIBUTING.md"), *Path("docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text()):
            if not target.startswith("http"):
                assert (path.parent / target).exists(), f"{path} links to {target}"


def test_tables_and_picture_are_as_the_script_writes_them(tmp_path: Path) -> None:
    """`python docs/readme.py` would change nothing."""
    spec = importlib.util.spec_from_file_location("readme", "docs/readme.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.written(README) == README
    svg, _png = script.draw(README, tmp_path / script.PICTURE.name)
    assert f"({script.PICTURE}.svg)" in README
    assert svg.read_text() == script.PICTURE.with_suffix(".svg").read_text()
