"""Claims about memory on peaks that are known."""

from pathlib import Path

import pytest

from harness.analysis.memory_claims import claims_table, growth_section, growths, held_logits, no_logits
from harness.analysis.tables import markdown_report
from harness.cost import gradient_floor_bytes, logits_bytes
from harness.record import Memory, PeakBlock
from harness.suite_file import load_suite

MIB = 2**20


@pytest.fixture
def peaks(make_record):
    """Records of suites/scaling.yaml at one label smoothing, whose peak beyond the gradients is `of(case)` bytes."""
    suite = load_suite(Path("suites/scaling.yaml"))
    cases = [case for case in suite.cases_on("cuda") if case.label_smoothing == 0]

    def make(of, name="mine", keep=lambda case: True, **extra):
        records = []
        for case in filter(keep, cases):
            peak = round(of(case)) + gradient_floor_bytes(case)
            sizes = dict.fromkeys(("fwd_no_grad_peak_bytes", "fwd_peak_bytes", "retained_bytes"), 0)
            memory = Memory(**sizes, bwd_peak_bytes=peak, fwd_bwd_peak_bytes=peak, **extra)
            record = make_record(implementation=name, ms=None, **case.model_dump())
            records.append(record.model_copy(update={"memory": memory}))
        return records

    return make


def test_the_fit_finds_what_grows(peaks):
    (found,) = growths(
        peaks(lambda case: 50 * MIB + 4 * 8 * case.tokens + 20 * case.vocab_size + 1000 * case.hidden_size)
    )
    assert found.logits_share == pytest.approx(0, abs=1e-6) and found.worst_residual < 1e-6
    assert found.per_token_bytes == pytest.approx(32, rel=1e-3)
    assert found.per_class_bytes == pytest.approx(20, rel=1e-3)
    assert found.per_hidden_bytes == pytest.approx(1000, rel=1e-3)
    assert (found.setting.tokens, found.setting.vocab_size, found.setting.hidden_size) == (4096, 65536, 2048)


@pytest.mark.parametrize("copies", [0.125, 1.0, 5.0])
def test_logits_show_in_the_growth_with_both(peaks, copies):
    (found,) = growths(peaks(lambda case: copies * logits_bytes(case) + 8 * case.tokens))
    assert found.logits_share == pytest.approx(copies, rel=1e-3)


def test_without_a_case_of_both_logits_cannot_be_told_apart(peaks):
    (found,) = growths(peaks(logits_bytes, keep=lambda case: (case.tokens, case.vocab_size) != (16384, 262144)))
    assert found.logits_share is None
    assert growths(peaks(logits_bytes, keep=lambda case: case.tokens == 4096)) == []  # N does not vary at all


def test_the_claim_needs_both_the_peak_and_the_growth(peaks):
    kept = peaks(lambda case: 0.02 * logits_bytes(case))
    (growth,) = growths(kept)
    assert all(no_logits(record, growth) for record in kept)
    # a small case may hide in 5 % what grows to be the logits: the growth says so
    some = peaks(lambda case: 0.049 * logits_bytes(case) + 0.011 * case.tokens / 4096 * case.vocab_size * 8192)
    (steep,) = growths(some)
    assert steep.logits_share > 0.05
    small = min(some, key=lambda record: record.case.tokens * record.case.vocab_size)
    assert not no_logits(small, steep)
    large = peaks(lambda case: 100 * MIB)
    (flat,) = growths(large)
    assert flat.logits_share == pytest.approx(0, abs=1e-9)
    by_size = {record.case.tokens: no_logits(record, flat) for record in large if record.case.vocab_size == 65536}
    assert by_size[16384] and not by_size[1024]  # 100 MiB are most of small logits


def test_a_gradient_that_is_one_large_block_is_no_logits(peaks):
    assert all(held_logits(record) == 0 and no_logits(record, None) for record in peaks(lambda case: 0))


def test_the_tables_show_it(peaks):
    blocks = [
        PeakBlock(bytes=64 * MIB, count=8, frames=["mine/loss.py:7 forward"]),
        PeakBlock(bytes=MIB, count=1, frames=[]),
    ]
    leaking = peaks(
        lambda case: 100 * MIB, name="leaky", leaked_bytes=8 * MIB, reserved_growth_bytes=300 * MIB,
        device_growth_bytes=364 * MIB, peak_blocks=blocks,
    )  # fmt: skip
    lines = "\n".join(claims_table(leaking[:1], growths(leaking))).splitlines()
    row = [cell.strip() for cell in next(line for line in lines if line.startswith("| leaky")).strip("|").split("|")]
    assert row == ["leaky", "0", "78.1 %", "no", "8.0", "300", "64.0"]
    assert any("64.0 MiB in 8 at `mine/loss.py:7 forward`; 1.0 MiB in 1 at `no Python frame`" in line for line in lines)
    report = markdown_report(leaking)
    assert "## Growth of the peak" in report and report.count("What is held in memory:") == len(leaking)
    assert growth_section(leaking[:2]) == []


def test_rows_without_memory_have_no_claims(make_record):
    assert claims_table([make_record()], []) == []  # from before leaks were measured
    assert not no_logits(make_record(), None)  # 28000 MiB beside gradients of 1161
    assert claims_table([make_record(mib=None)], []) == [] and held_logits(make_record(mib=None)) is None
