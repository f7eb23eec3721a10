"""Samples arranged as they were taken: a line per round, a column per sample of the turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from harness.record import Record, Times

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
TimeColumn = Literal["fwd_no_grad_ms", "fwd_ms", "bwd_ms", "fwd_bwd_ms"]


@dataclass(frozen=True, eq=False)
class Turns:
    """What one row did in the rounds that it played: times in ms, or ratios of them.

    Raises ValueError for values that are not (rounds, samples), not positive, or rounds that do not increase.
    """

    name: str
    rounds: Integers  # (R,) numbers of the rounds, increasing; a row may have sat out some
    values: Floats  # (R, S) the samples of each turn, in the order they were taken

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.rounds.shape != self.values.shape[:1] or not self.values.shape[1]:
            raise ValueError(f"{self.name}: {self.rounds.shape} rounds do not fit {self.values.shape} values (R, S)")
        if not bool(np.all(np.isfinite(self.values) & (self.values > 0))):
            raise ValueError(f"{self.name}: values must be positive and finite, their logarithms are compared")
        if not bool(np.all(np.diff(self.rounds) > 0)):
            raise ValueError(f"{self.name}: rounds must increase, given {self.rounds.tolist()}")

    def log_medians(self) -> Floats:
        """(R,) the logarithm of each turn's median; a turn of two samples has the mean of their logarithms."""
        medians: Floats = np.median(np.log(self.values), axis=1)
        return medians

    def first(self, rounds: int) -> Turns:
        """What would have been known after that many of its rounds."""
        return Turns(self.name, self.rounds[:rounds], self.values[:rounds])


def turns_of(record: Record, column: TimeColumn = "fwd_bwd_ms") -> Turns | None:
    """A record's samples of one column; None if it was not timed. Raises ValueError if turns differ in length.

    Those of fwd+bwd with a call's share of what the implementation does rarely: `Record.amortised_ms`.
    """
    return timed_turns(record.implementation, record.times, column, record.amortised_ms)


def again_turns_of(record: Record) -> Turns | None:
    """The same of the row's second worker, the other half of an A/A; None if it had none."""
    return timed_turns(record.implementation, record.again, amortised_ms=record.amortised_ms)


def timed_turns(
    name: str, times: Times | None, column: TimeColumn = "fwd_bwd_ms", amortised_ms: float = 0.0
) -> Turns | None:
    """The samples of one column of a row, of its second worker, or of a reference from another group.

    amortised_ms: added to every fwd+bwd.
    """
    if times is None or not times.round:
        return None
    turns = arranged(name, times.round, getattr(times, column))
    return Turns(name, turns.rounds, turns.values + amortised_ms) if column == "fwd_bwd_ms" else turns


def places_of(times: Times, turns: Turns) -> list[int] | None:
    """The place in the round of each of the row's `turns`, 0 for the first; None where none was recorded."""
    if not times.position:
        return None
    places = dict(zip(times.round, times.position, strict=True))
    return [places[int(number)] for number in turns.rounds]


def gemm_turns_of(record: Record) -> Turns | None:
    """The GEMM of the record's rounds; None if there is none.

    The referee has a turn of the same length in every round from the first on (`harness.running.rounds`), so the list
    needs no round numbers. It may end before the row does, if the referee failed.
    """
    row = turns_of(record)
    if row is None or not record.gemm_ms:
        return None
    samples = row.values.shape[1]
    rounds, left = divmod(len(record.gemm_ms), samples)
    if left:
        raise ValueError(f"{record.implementation}: {len(record.gemm_ms)} GEMM samples are no turns of {samples}")
    return Turns("gemm", np.arange(rounds), np.reshape(record.gemm_ms, (rounds, samples)))


def arranged(name: str, rounds: Any, values: Any) -> Turns:
    """Turns from a flat list of samples and the round of each, as records hold them."""
    numbers, counts = np.unique(np.asarray(rounds, dtype=np.int64), return_counts=True)
    if len(set(counts.tolist())) > 1:
        raise ValueError(f"{name}: turns of unequal length, {sorted(set(counts.tolist()))} samples")
    order = np.argsort(rounds, kind="stable")
    return Turns(name, numbers, np.asarray(values, dtype=np.float64)[order].reshape(len(numbers), -1))


def paired(head: Turns, base: Turns) -> Turns:
    """(R, 1) head over base, a ratio of turn medians for each round that both played; other rounds are left out.

    What slows both alike in a round, a lower clock or a warmer chip, cancels.
    """
    _, in_head, in_base = np.intersect1d(head.rounds, base.rounds, assume_unique=True, return_indices=True)
    logs = head.log_medians()[in_head] - base.log_medians()[in_base]
    return Turns(f"{head.name} / {base.name}", head.rounds[in_head], np.exp(logs)[:, None])
