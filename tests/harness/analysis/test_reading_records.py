"""records.jsonl to records and to a frame: order, torn and bad lines, medians, missing numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.analysis.frame import read_records, to_frame
from harness.analysis.row import COLUMNS, to_row
from harness.analysis.statistics.error_rates import simulated_case
from harness.analysis.statistics.ratio import noise_floor, ratio_interval, time_interval
from harness.analysis.statistics.simulation import QUIET
from harness.record import Probes, Record
from harness.yaml_source import InvalidFile

MakeRecord = Callable[..., Record]
WriteRun = Callable[[list[Record]], Path]


def test_records_come_in_the_order_of_the_file(make_record: MakeRecord, write_run: WriteRun) -> None:
    records = [make_record(name, label_smoothing=beta) for beta in (0.1, 0.0) for name in ("liger", "baseline")]
    run = write_run(records)
    assert read_records(run) == records
    assert read_records(run / "records.jsonl") == records


@pytest.mark.parametrize("torn", [b'{"format":1,"suite":"gem', b'{"suite":"\xce', b"\x00\x00"])
def test_a_torn_last_line_is_ignored_with_a_warning(
    torn: bytes, make_record: MakeRecord, write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run([make_record("baseline")])
    with (run / "records.jsonl").open("ab") as file:
        file.write(torn)
    assert [record.implementation for record in read_records(run)] == ["baseline"]
    output = capsys.readouterr()
    assert "records.jsonl:2: ignored" in output.err
    assert output.out == ""


def test_a_complete_last_line_needs_no_newline(
    make_record: MakeRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "records.jsonl"
    file.write_text(make_record().model_dump_json())
    assert len(read_records(tmp_path)) == 1
    assert capsys.readouterr().err == ""


def test_every_other_bad_line_is_named(make_record: MakeRecord, tmp_path: Path) -> None:
    good = make_record().model_dump_json()
    file = tmp_path / "records.jsonl"
    newer = good.replace('"format":1', '"format":2')
    file.write_text(f"{good}\nnot json\n{newer}\n" + good.replace("baseline", "liger") + "\n{torn but ended}\n")
    with pytest.raises(InvalidFile) as error:
        read_records(tmp_path)
    mistakes = str(error.value).splitlines()
    assert [line.split(": ")[0] for line in mistakes] == [f"{file}:{number}" for number in (2, 3, 5)]
    assert "no record" in mistakes[0]
    assert "format: Input should be 1" in mistakes[1]


def test_a_whole_but_invalid_last_line_is_not_taken_for_a_torn_one(make_record: MakeRecord, tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text(make_record().model_dump_json() + '\n{"format":1}')
    with pytest.raises(InvalidFile, match=r"records\.jsonl:2: no record: suite: Field required; .* more"):
        read_records(tmp_path)


def test_a_second_record_of_a_row_names_both_lines(make_record: MakeRecord, write_run: WriteRun) -> None:
    run = write_run([make_record("liger"), make_record("cce"), make_record("liger", ms=(1.0, 1.0))])
    with pytest.raises(InvalidFile, match=r"jsonl:3: a second record of liger on n8192.*; the first is on line 1"):
        read_records(run)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist"):
        read_records(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path} is no run directory: it holds no records\.jsonl"):
        read_records(tmp_path)


def test_numbers_are_computed_when_read(make_record: MakeRecord) -> None:
    record = make_record(ms=(20.0, 29.2), mib=(1, 2, 2322), gemm_ms=12.3)
    row = to_frame([record]).iloc[0]
    assert row["fwd_bwd_ms"] == pytest.approx(49.2)  # the median, not the mean, of samples that were stored raw
    assert row["fwd_bwd_gemms"] == pytest.approx(4.0)
    assert row["gemm_tflops"] == pytest.approx(2 * 8192 * 2304 * 256000 / 12.3e9)
    assert row["gradient_floor_bytes"] == (8192 + 256000) * 2304 * 2
    assert row["fwd_bwd_peak_to_floor"] == pytest.approx(2322 * 2**20 / row["gradient_floor_bytes"])
    assert (row["samples"], row["rounds"]) == (3, 3)
    assert math.isnan(row["fwd_bwd_ms_low"])  # three rounds have no interval
    assert row["fwd_bwd_tflops"] == pytest.approx(3 * 2 * 8192 * 2304 * 256000 / 49.2e9)
    moved = 2 * row["gradient_floor_bytes"] + 8 * 8192 + 4  # inputs, targets, gradients, loss
    assert row["fwd_bwd_gb_per_s"] == pytest.approx(moved / 49.2e6)
    assert (row["first_call_s"], row["settle_s"]) == (1.5, 2.5)


def test_intervals_are_those_of_the_paired_rounds(make_record: MakeRecord) -> None:
    run = simulated_case(QUIET, 12, seed=0, slowdown=0.05)
    gemm_ms = run.turns["gemm"].values.ravel().tolist()
    head = make_record("liger", times=run.times("head")).model_copy(update={"gemm_ms": gemm_ms})
    base = make_record("baseline", times=run.times("base"), again=run.times("faster"))
    frame = to_frame([head, base.model_copy(update={"gemm_ms": gemm_ms})]).set_index("implementation")
    turns = run.turns
    for column, expected in (
        ("fwd_bwd_ms", time_interval(turns["head"])),
        ("fwd_bwd_to_reference", ratio_interval(turns["head"], turns["base"])),
        ("fwd_bwd_gemms", ratio_interval(turns["head"], turns["gemm"])),
    ):
        assert expected is not None
        read = [frame.loc["liger", f"{column}{end}"] for end in ("", "_low", "_high")]
        assert read == pytest.approx([expected.estimate, expected.low, expected.high]), column
    floor = noise_floor(turns["base"], turns["faster"])
    assert floor is not None and frame.loc["baseline", "noise"] == pytest.approx(floor.margin)
    assert math.isnan(frame.loc["liger", "noise"]) and math.isnan(frame.loc["baseline", "fwd_bwd_to_reference"])
    assert json.loads(frame.loc["liger", "findings"]) == []


def test_a_gpu_that_is_known_has_a_floor(make_record: MakeRecord) -> None:
    gpu = {"compute_capability": [9, 0], "max_sm_clock_mhz": 1980, "multiprocessors": 132}
    known = make_record().provenance.model_copy(update={"environment": {"gpu": gpu}})
    probes = Probes(copy_ms=[0.25, 0.26, 0.24], copy_bytes=10**9)
    row = to_frame([make_record(ms=(20.0, 34.16), provenance=known, probes=probes)]).iloc[0]
    assert row["fwd_bwd_floor_ms"] == pytest.approx(27.08, abs=0.01)
    assert row["fwd_bwd_floor_share"] == pytest.approx(0.5, abs=1e-3)
    assert row["copy_gb_per_s"] == pytest.approx(4000)


def test_times_on_a_cpu_are_not_put_into_gemms(make_record: MakeRecord) -> None:
    cpu = make_record().provenance.model_copy(update={"device": "cpu"})
    row = to_frame([make_record(provenance=cpu)]).iloc[0]
    assert math.isnan(row["fwd_bwd_gemms"])
    assert not math.isnan(row["fwd_bwd_ms"])


def test_a_row_without_measurements_has_no_numbers(make_record: MakeRecord) -> None:
    frame = to_frame([make_record("cce", "unavailable", gemm_ms=None), make_record("baseline")])
    missing = frame.iloc[0]
    for name in (
        "fwd_bwd_ms",
        "fwd_bwd_ms_low",
        "fwd_bwd_to_reference",
        "fwd_bwd_floor_ms",
        "fwd_bwd_tflops",
        "fwd_bwd_gemms",
        "fwd_bwd_peak_to_floor",
        "grad_input_excess",
        "first_call_s",
    ):
        assert math.isnan(missing[name]), name
    assert frame["fwd_bwd_peak_bytes"].isna().tolist() == [True, False]
    assert missing["samples"] == 0
    assert str(frame["fwd_bwd_peak_bytes"].dtype) == "Int64"  # bytes stay whole beside missing ones


def test_no_records_still_have_columns() -> None:
    assert list(to_frame([]).columns) == list(COLUMNS)


def test_rates_are_of_the_tokens_that_count(make_record: MakeRecord) -> None:
    half, whole = (
        to_row(make_record(gemm_ms=12.3, ignored_fraction=share, input_statistics={"counted_rows": counted}))
        for share, counted in ((0.5, 4096), (0.0, 8192))
    )
    assert half.fwd_bwd_tflops == pytest.approx(whole.fwd_bwd_tflops / 2)
    assert half.gemm_tflops == whole.gemm_tflops  # the referee's product is of all tokens
    assert half.fwd_bwd_gb_per_s < whole.fwd_bwd_gb_per_s
