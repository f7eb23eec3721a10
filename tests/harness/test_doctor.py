"""What the doctor makes of machines that are described to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from harness import doctor
from harness.cli import app
from harness.doctor import Diagnosis, as_text
from harness.record import Status
from harness.running import runs
from harness.running.process import WorkerFailure

H200 = {
    "python": "3.12.3",
    "packages": {"torch": "2.11.0", "triton": "3.6.0", "liger-kernel": None},
    "variables": {},
    "cuda": "13.0",
    "cuda_available": True,
    "gpu": {
        "name": "NVIDIA H200", "multiprocessors": 132, "memory_bytes": 139 << 30, "l2_bytes": 60 << 20,
        "driver": "580", "max_sm_clock_mhz": 1980, "power_limit_w": 700.0,
    },
}  # fmt: skip
QUIET = {
    "nvml": True, "sm_clock_mhz": 345, "power_w": 75.0, "temperature_c": 30, "throttle_reasons": 1,
    "busy_percent": 0, "used_bytes": 600 << 20, "processes": [],
}  # fmt: skip


def turns(noise: float = 0.003, bias: float = 1.0, rounds: int = 60, bits: int = 4) -> Iterator[tuple[int, int, Any]]:
    generator = np.random.default_rng(1)
    for number in range(rounds):
        for which in (0, 1):
            ms = 3.0 * (bias if which else 1.0) * (1 + noise * generator.standard_normal(2))
            yield (
                number,
                which,
                {"fwd_bwd_ms": ms.tolist(), "throttle_reasons": [bits] * 2, "sm_clock_mhz": [1700, 1750]},
            )


@pytest.fixture
def diagnosed(monkeypatch: pytest.MonkeyPatch, tmp_path):
    """The diagnosis of a machine that is quiet but for what is said."""

    def look(
        machine: dict[str, Any] = H200, now: dict[str, Any] = QUIET, load: float = 1.0, **of_turns: Any
    ) -> Diagnosis:
        monkeypatch.setattr(runs, "environment", lambda log: machine)
        monkeypatch.setattr(runs, "available", lambda log: {"baseline": None, "cce": "not there; pip install 'cce'"})
        monkeypatch.setattr(doctor, "_ask_once", lambda what, log: now)
        monkeypatch.setattr(doctor, "play", lambda logs: turns(**of_turns))
        monkeypatch.setattr(doctor.os, "getloadavg", lambda: (load, load, load))
        monkeypatch.setattr(doctor.os, "cpu_count", lambda: 16)
        return doctor.diagnose(tmp_path, lambda _: None)

    return look


def test_a_quiet_gpu_is_fit(diagnosed) -> None:
    found = diagnosed()
    assert found.unfit == []
    text = as_text(found)
    assert "NVIDIA H200, 132 multiprocessors" in text and "torch 2.11.0, triton 3.6.0, CUDA 13.0" in text
    assert (
        "SM clock 345 of 1980 MHz, 75 of 700 W, 30 °C, not throttled" in text and "A/A: baseline over itself " in text
    )
    assert "meanwhile SM clock 1700 to 1750 MHz, throttled (bits: sw power cap) in 100 % of the samples" in text
    assert "implementations available: baseline" in text and "not available: cce: not there" in text
    assert text.endswith("Fit to measure.")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"now": QUIET | {"processes": [{"pid": 77, "bytes": 9 << 30}]}}, "other processes on the GPU: 77 (9216 MiB)"),
        ({"now": QUIET | {"processes": [{"pid": 77, "bytes": None}]}}, "other processes on the GPU: 77 (— MiB)"),
        ({"now": QUIET | {"busy_percent": 60}}, "somebody else is on the GPU, though no process can be seen"),
        ({"now": QUIET | {"used_bytes": 40 << 30}}, "40960 MiB used"),
        ({"now": QUIET | {"throttle_reasons": 64}}, "throttling before anything runs: throttled (bits: hw thermal)"),
        ({"now": {"nvml": False}}, "no NVML"),
        ({"load": 40.0}, "load 40.0 on 16 cores"),
        ({"noise": 0.1}, "a difference of 1 % could not be seen"),
        ({"bias": 1.03}, "a difference of 1 % could not be seen"),
        ({"rounds": 3}, "only 6 samples of the noise"),
        ({"rounds": 0}, "only 0 samples of the noise"),
        ({"bits": 32}, "throttled by heat or hardware in 100 % of the samples under load"),
    ],
)
def test_what_makes_it_unfit_is_named(diagnosed, changes, words) -> None:
    found = diagnosed(**changes)
    assert len(found.unfit) == 1 and words in found.unfit[0], found.unfit
    assert "Not fit to measure:\n- " in as_text(found)


def test_a_machine_without_a_gpu_says_so(diagnosed) -> None:
    found = diagnosed(machine=H200 | {"cuda_available": False, "cuda": None})
    assert found.unfit == [
        "torch sees no CUDA GPU: agreement can be computed here, times and memory cannot be measured"
    ]
    assert not any("A/A" in line for line in found.seen)


def test_workers_that_fail(diagnosed, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    def fails(*arguments: Any) -> Any:
        raise WorkerFailure(Status.OUT_OF_MEMORY, "no memory left")

    diagnosed()
    monkeypatch.setattr(doctor, "play", fails)
    monkeypatch.setattr(doctor, "_ask_once", fails)
    monkeypatch.setattr(runs, "available", fails)
    found = doctor.diagnose(tmp_path, lambda _: None)
    assert [line.partition(":")[0].removesuffix("looked at") for line in found.unfit] == [
        "the GPU could not be ",
        "the implementations could not be ",
        "the noise could not be measured",
    ]


def test_exit_codes(diagnosed) -> None:
    diagnosed()
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 0
    diagnosed(now=QUIET | {"busy_percent": 99})
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 5
    assert "99 % busy" in done.stdout
