"""What each picture draws of records, and the reason where it draws nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from matplotlib.axes import Axes

from harness.analysis.pictures.files import draw_all
from harness.analysis.pictures.lines import Point, slope
from harness.analysis.pictures.picture import MOST_PANELS, Picture, Skipped, styles
from harness.analysis.pictures.ratios import ratios
from harness.analysis.pictures.rounds import moments, rounds
from harness.analysis.pictures.scaling import memory_scaling, time_scaling
from harness.analysis.pictures.smoothing import label_smoothing
from harness.analysis.pictures.time_error import knobs, time_error
from harness.analysis.pictures.time_memory import pareto_front, time_memory
from harness.analysis.row import to_row
from harness.analysis.rows import Rows
from harness.analysis.statistics.error_rates import simulated_case
from harness.analysis.statistics.ratio import ratio_interval
from harness.analysis.statistics.simulation import QUIET
from harness.record import Probes, Record, Times

MakeRecord = Callable[..., Record]


def drawn(result: Picture | Skipped) -> Picture:
    assert isinstance(result, Picture), result
    return result


def words(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_nothing_timed_on_a_gpu_gives_reasons(make_record: MakeRecord) -> None:
    origin = make_record().provenance
    on_cpu = make_record(provenance=origin.model_copy(update={"device": "cpu"}), mib=None)
    for records in ([], [on_cpu], [make_record(ms=None)], [make_record(status="unavailable")]):
        results = draw_all(records)
        assert [type(result) for result in results] == [Skipped] * 7
        assert {result.reason for result in results if isinstance(result, Skipped)} == {"no row was timed on a GPU"}


def test_each_picture_says_what_it_lacks(make_record: MakeRecord) -> None:
    results = draw_all([make_record(mib=None)])
    reasons = {result.stem: result.reason for result in results if isinstance(result, Skipped)}
    assert reasons == {
        "time-memory": "no timed row has a memory peak",
        "time-error": "no case has two timed rows with an excess and a GEMM",
        "scaling-time": "neither N nor D nor V takes three values with all else equal",
        "scaling-memory": "neither N nor D nor V takes three values with all else equal",
        "label-smoothing": "no implementation was timed at two values of the label smoothing",
        "ratios": "no row has a ratio to the reference with an interval",
    }
    assert [result.stem for result in results if isinstance(result, Picture)] == ["rounds"]


def test_the_front_has_what_no_other_beats(make_record: MakeRecord) -> None:
    costs = {"small": (9, 100), "middle": (6, 200), "beaten": (7, 300), "fast": (3, 400), "same-as-small": (9, 100)}
    rows = [to_row(make_record(name, ms=(ms / 3, ms * 2 / 3), mib=(1, 1, m))) for name, (ms, m) in costs.items()]
    assert [row.implementation for row in pareto_front(rows)] == ["small", "middle", "fast"]
    assert pareto_front([]) == []


def test_time_memory_names_rows_and_floors(make_record: MakeRecord) -> None:
    records = [
        make_record("lower-bound", analytic=True, ms=None, error=None),
        make_record("baseline"),
        make_record("cce", "disagrees", ms=(10, 20), mib=(1, 1, 1163)),
        make_record("liger", "unsupported"),
    ]
    picture = drawn(time_memory(records))
    (axes,) = picture.figure.axes
    assert words(axes) == ["gradients alone: 1161 MiB", "3 GEMMs: 36.9 ms", "baseline", "cce"]
    faces = {line.get_markerfacecolor() for line in axes.get_lines() if line.get_marker() == "o"}
    assert "white" in faces  # the one that disagrees
    assert len(faces) == 2
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_time_error_names_rows_and_joins_a_knob(make_record: MakeRecord) -> None:
    records = [
        make_record("lower-bound", analytic=True, ms=None, error=None),
        make_record("baseline"),
        make_record("coarse", excess=(3.0, 1.0), ms=(4, 6), path="own.module:loss", options={"tolerance": 1e-2}),
        make_record("fine", excess=(0.8, 0.9), ms=(8, 12), path="own.module:loss", options={"tolerance": 1e-3}),
        make_record("other", excess=(0.8, 0.9), ms=(8, 12), path="other.module:loss"),
        make_record("cce", "disagrees", excess=(30.0, 4.5), ms=(10, 20)),
    ]
    (joined,) = knobs(records)
    assert [record.implementation for record in joined] == ["fine", "coarse"]
    (axes,) = drawn(time_error(records)).figure.axes
    assert words(axes)[:2] == ["eager", "limit 4"]
    assert set(words(axes)[2:]) == {"baseline", "coarse", "fine", "other", "cce"}
    (line,) = [line for line in axes.get_lines() if line.get_marker() == "None" and len(line.get_xdata()) == 2
               and line.get_linestyle() == "-" and line.get_alpha() == 0.45]  # fmt: skip
    assert list(line.get_ydata()) == sorted(line.get_ydata(), reverse=True)  # less error, more time


def test_time_error_has_the_gemms_of_the_tables(make_record: MakeRecord) -> None:
    """Times that fall and GEMMs that rise: the ratio of the rounds is not the quotient of the medians."""
    gemm_ms, taken = [10.0, 10.0, 10.0, 10.1, 12.0, 12.0, 12.0], [40.0, 40.0, 40.0, 39.0, 30.0, 30.0, 30.0]
    half = [time_ms / 2 for time_ms in taken]
    times = Times(fwd_no_grad_ms=half, fwd_ms=half, bwd_ms=half, fwd_bwd_ms=taken, round=list(range(7)))
    records = [make_record(name, times=times).model_copy(update={"gemm_ms": gemm_ms}) for name in ("a", "b")]
    paired = {Rows(records).of(record).fwd_bwd_gemms for record in records}
    (axes,) = drawn(time_error(records)).figure.axes
    heights = {float(line.get_ydata()[0]) for line in axes.get_lines() if line.get_marker() == "o"}
    assert heights == paired
    assert heights != {to_row(records[0]).fwd_bwd_gemms}


def test_a_single_row_on_its_floor_can_be_drawn(make_record: MakeRecord) -> None:
    record = make_record(gemm_ms=None, mib=(1, 1, 1161), ms=(1, 2))
    drawn(time_memory([record])).figure.draw_without_rendering()


def test_more_cases_than_panels_are_said_to_be_left_out(make_record: MakeRecord) -> None:
    records = [make_record(seed=seed) for seed in range(MOST_PANELS + 2)]
    for picture in (drawn(time_memory(records)), drawn(rounds(records))):
        assert picture.figure.get_supxlabel() == "shown: the first 8 of 10 cases"


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_slope_is_the_power(power: float) -> None:
    assert slope([Point(x, 3 * x**power, True) for x in (1, 2, 4, 8)]) == pytest.approx(power)


def test_slope_needs_three_places() -> None:
    assert slope([Point(1, 1, True), Point(2, 2, True), Point(2, 3, True)]) is None


def test_scaling_fits_the_powers_of_the_records(scaling_run: list[Record]) -> None:
    picture = drawn(time_scaling(scaling_run))
    legends = [legend for axes in picture.figure.axes if (legend := axes.get_legend())]
    texts = [[text.get_text() for text in legend.get_texts()] for legend in legends]
    assert texts == [["dense:  N 1.00  D 1.00  V 1.00", "clever:  N 1.00  D 1.00  V 0.50"]] * 2  # β = 0.1 and 0
    panels = [axes for axes in picture.figure.axes if not axes.get_legend()]
    assert [axes.get_xlabel() for axes in panels] == ["N", "D", "V"] * 2
    peaks = drawn(memory_scaling(scaling_run))
    legend = next(legend for axes in peaks.figure.axes if (legend := axes.get_legend()))
    assert [text.get_text() for text in legend.get_texts()] == [
        "dense:  N 1.00  D 0.00  V 1.00",
        "clever:  N 0.00  D 1.00  V 1.00",
    ]


def test_an_axis_that_does_not_vary_says_so(make_record: MakeRecord) -> None:
    picture = drawn(time_scaling([make_record(tokens=tokens, ms=(tokens, tokens)) for tokens in (1024, 2048, 4096)]))
    assert [words(axes) for axes in picture.figure.axes[:3]] == [[], ["D does not vary"], ["V does not vary"]]


def test_label_smoothing_shows_where_it_varies_most(scaling_run: list[Record]) -> None:
    picture = drawn(label_smoothing(scaling_run))
    (axes,) = picture.figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "0.1", "0.2", "1"]
    assert words(axes) == ["dense  +100 %", "clever  ±0 %"]  # in the synthetic run time is 1 + β
    assert picture.figure.get_supxlabel() == "settings with fewer than 4 values of β are left out"


def test_moments_lie_within_their_round() -> None:
    assert moments([0, 0, 1, 2, 2]) == (0.25, 0.75, 1.5, 2.25, 2.75)


def test_rounds_have_a_lane_each_and_the_clock_beneath(make_record: MakeRecord) -> None:
    record = make_record("ours")
    assert record.times is not None
    nvml = {"sm_clock_mhz": [1500, 1600, 1200], "throttle_reasons": [4, 4, 64]}
    throttled = record.model_copy(update={"times": record.times.model_copy(update=nvml)})
    picture = drawn(rounds([throttled, make_record("cce", "disagrees")]))
    lanes, clock = picture.figure.axes
    assert [label.get_text() for label in lanes.get_yticklabels()] == ["ours  64.5", "cce  64.5", "GEMM  12.3"]
    assert clock.get_ylabel() == "SM clock,\nMHz"
    (slowdown,) = clock.patches  # round 2, hw thermal; the power cap of the others is usual
    assert (slowdown.get_x(), slowdown.get_width()) == (2, 1)  # type: ignore[attr-defined]
    without = drawn(rounds([record]))
    assert words(without.figure.axes[1]) == ["no clock recorded"]


def test_rounds_show_the_second_worker_and_the_copy(make_record: MakeRecord) -> None:
    record = make_record("ours")
    probes = Probes(copy_ms=[0.25, 0.26, 0.24], copy_bytes=1, round=[0, 1, 2])
    picture = drawn(rounds([record.model_copy(update={"again": record.times, "probes": probes})]))
    names = [label.get_text() for label in picture.figure.axes[0].get_yticklabels()]
    assert names == ["ours  64.5", "ours, A/A  64.5", "GEMM  12.3", "copy  0.250"]


def test_ratios_are_ordered_with_their_intervals_and_the_noise_behind(make_record: MakeRecord) -> None:
    run = simulated_case(QUIET, 12, seed=0, slowdown=0.1)
    gemm_ms = run.turns["gemm"].values.ravel().tolist()
    sources = {"late": "head", "baseline": "base", "early": "faster"}
    records = [make_record(name, times=run.times(row)) for name, row in sources.items()]
    records = [record.model_copy(update={"gemm_ms": gemm_ms}) for record in records]
    picture = drawn(ratios(records))
    (axes,) = picture.figure.axes
    assert [label.get_text().split()[0] for label in axes.get_yticklabels()] == ["early", "late"]
    expected = ratio_interval(run.turns["head"], run.turns["base"])
    assert expected is not None
    assert [expected.low, expected.high] in [list(line.get_xdata()) for line in axes.get_lines()]
    assert not axes.patches  # nothing was measured twice
    records[1] = records[1].model_copy(update={"again": run.times("head")})
    (axes,) = drawn(ratios(records)).figure.axes
    (band,) = axes.patches
    assert band.get_x() + band.get_width() == pytest.approx(1.1, abs=0.01)  # type: ignore[attr-defined]


def test_without_rounds_there_are_no_ratios(make_record: MakeRecord) -> None:
    assert isinstance(ratios([make_record("baseline"), make_record("liger")]), Skipped)


def test_styles_are_distinct_and_the_same_everywhere(make_record: MakeRecord) -> None:
    records = [make_record(f"row-{place}") for place in range(18)]
    found = styles(records)
    assert len(set(found.values())) == 18
    assert list(found) == [record.implementation for record in records]
