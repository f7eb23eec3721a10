"""Samples that were measured elsewhere in the hands of pytest-benchmark, by what it documents and nothing else.

pytest-benchmark reads its timer before and after a call and keeps the difference. This timer stands still until the
call sets it to a sample, and the setup before each call sets it back to zero: the difference is the sample to the
last bit.

    TIMER = harness.ReplayTimer()

    @pytest.mark.benchmark(timer=TIMER)
    def test_mine(benchmark):
        TIMER.replay(benchmark, record.times.fwd_bwd_ms)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class ReplayTimer:
    """A timer for `pytest.mark.benchmark(timer=…)`, in seconds. One serves any number of tests, one after the other."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._read = False  # since it was set back

    def __call__(self) -> float:
        self._read = True
        return self._now_s

    def __repr__(self) -> str:
        return (
            "harness.replay.ReplayTimer"  # stands in pytest-benchmark's JSON, where an address would differ each time
        )

    def replay(self, benchmark: Any, samples_ms: Sequence[float]) -> None:
        """Gives every sample to pytest-benchmark's fixture, as a round of one iteration.

        Raises ValueError without samples, RuntimeError if the test's timer is another.
        """
        if not samples_ms:
            raise ValueError("no samples to replay")
        samples_s = iter([sample / 1e3 for sample in samples_ms])

        def set_back() -> None:
            self._now_s, self._read = 0.0, False

        def play() -> None:
            if benchmark.enabled and not self._read:
                raise RuntimeError(
                    "mark the test with @pytest.mark.benchmark(timer=…), not with another: it would time nothing"
                )
            self._now_s = next(
                samples_s, 0.0
            )  # more calls than samples are --benchmark-cprofile's, which times nothing

        benchmark.pedantic(play, setup=set_back, rounds=len(samples_ms))
