"""The second table shows how gradients are off, and nothing where records are older than it."""

import pytest

from harness.analysis.agreement_table import HEADERS, agreement_details, share_of_limit
from harness.analysis.tables import markdown_report
from harness.checks import Check, Checks, Diagnostics
from harness.record import Record

OFF = Diagnostics(
    grad_input_slope=0.997,
    grad_weight_slope=1.0,
    grad_weight_decile_errors=[0.5, *[0.1] * 8, 0.002],
    cold_rows=240000,
    cold_row_error_median=0.9,
    cold_row_error_p99=1.0,
    adamw_step_error=0.4,
)
EAGER = Diagnostics(grad_input_slope=1.0, grad_weight_slope=1.0, cold_row_error_median=0.004)
CHECKS = Checks(
    mass=Check(of="grad_weight", deviation=6e-3, limit=2e-3),
    linearity=Check(of="grad_input", deviation=1e-3, limit=4e-3),
    repeat=Check(of="loss", deviation=None, limit=1e-5),
    repeats_bitwise=False,
)


@pytest.fixture
def detailed(make_record):
    def make(**changes) -> Record:
        record = make_record(**changes)
        details = {"diagnostics": OFF, "eager_diagnostics": EAGER, "checks": CHECKS}
        return record.model_copy(update={"agreement": record.agreement.model_copy(update=details)})

    return make


def lines_of(records) -> list[str]:
    return "\n".join(agreement_details(records)).splitlines()


def cells(line: str) -> dict[str, str]:
    return dict(zip(HEADERS, (cell.strip() for cell in line.strip("|").split("|")), strict=True))


def test_each_number_in_its_place(detailed):
    lines = lines_of([detailed(implementation="a|b"), detailed(implementation="ours")])
    eager, row = (cells(next(line for line in lines if name in line)) for name in ("*eager arithmetic*", "| ours"))
    assert row["dE slope - 1"] == "-3.0e-03" and row["dC slope - 1"] == "+0.0e+00"
    assert row["dC error, smallest tenth"] == "5.0e-01" and row["largest tenth"] == "2.0e-03"
    assert row["cold rows, median"] == "9.0e-01" and eager["cold rows, median"] == "4.0e-03"
    assert row["AdamW step"] == "4.0e-01" and eager["AdamW step"] == "—"
    assert (row["mass"], row["linear"], row["permuted"], row["repeated"]) == ("**3**", "0.25", "—", "**not finite**")
    assert eager["mass"] == "" and sum("eager arithmetic*" in line for line in lines) == 1


def test_a_block_for_each_smoothing(detailed):
    lines = lines_of([detailed(label_smoothing=0.0), detailed(label_smoothing=0.1)])
    shown = [cells(line)["β"] for line in lines if line.startswith(("| baseline", "| *eager"))]
    assert shown == ["0.1", "0.1", "0", "0"]


def test_bits(detailed):
    record = detailed()
    found = record.agreement.model_copy(update={"checks": CHECKS.model_copy(update={"repeats_bitwise": True})})
    (line,) = (x for x in lines_of([record.model_copy(update={"agreement": found})]) if "| baseline" in x)
    assert cells(line)["repeated"] == "bits"
    assert share_of_limit(Check(of="loss", deviation=1e-5, limit=1e-5)) == "1"


def test_records_from_before_have_no_second_table(make_record, detailed):
    assert agreement_details([make_record(), make_record(status="unsupported")]) == []
    assert "How the gradients are off:" not in markdown_report([make_record()])
    assert "How the gradients are off:" in markdown_report([detailed()])
    loaded = Record.model_validate_json(detailed().model_dump_json())
    assert loaded.agreement.checks == CHECKS and loaded.agreement.diagnostics == OFF
