"""From a suite to the rows of a gate: every row twice, as NAME@base and as NAME@head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.comparison.comparison import BASE, HEAD
from harness.suite import Suite, SuiteImplementation
from implementations.registry import LOWER_BOUND

Registry = Mapping[str, str]  # name -> pkg.mod:obj


@dataclass(frozen=True)
class Pair:
    """A row of the suite as base and head have it; None where a tree's registry does not know it."""

    name: str
    base: SuiteImplementation | None
    head: SuiteImplementation | None

    @property
    def rows(self) -> list[SuiteImplementation]:
        """Those that can be measured, base first."""
        return [row for row in (self.base, self.head) if row is not None]

    @property
    def names(self) -> tuple[str, str]:
        """As records call the two, whether or not there are any."""
        return self.name + BASE, self.name + HEAD


def pairs_of(suite: Suite, names: Sequence[str], base: Registry, head: Registry) -> list[Pair]:
    """A pair for each of the suite's rows among `names`, but for the lower bound, which nobody can change."""
    rows = [row for row in suite.implementations if row.name in names and row.name != LOWER_BOUND]
    return [Pair(row.name, _row(row, BASE, base), _row(row, HEAD, head)) for row in rows]


def paired_suite(suite: Suite, pairs: Sequence[Pair], case_budget_s: float | None) -> Suite:
    """The suite as its workers and records know it: with the pairs' rows, and expectations of both of each."""
    rows = [row for pair in pairs for row in pair.rows]
    expectations = [
        expected.model_copy(
            update={"implementation": [name + end for name in expected.implementation for end in (BASE, HEAD)]}
        )
        for expected in suite.expectations
    ]
    changes: dict[str, object] = {"implementations": rows, "expectations": expectations, "reference": rows[0].name}
    changes |= {"twice": rows[0].name}
    if case_budget_s is not None:
        budget = {"case_budget_s": case_budget_s}
        changes["measurement"] = suite.measurement.model_copy(update=budget)
        if suite.on_cpu is not None and suite.on_cpu.measurement is not None:
            there = suite.on_cpu.measurement.model_copy(update=budget)
            changes["on_cpu"] = suite.on_cpu.model_copy(update={"measurement": there})
    return suite.model_copy(update=changes)


def chunks_of(pairs: Sequence[Pair], places: int) -> Iterator[tuple[list[Pair], bool]]:
    """Pairs whose workers find room beside each other, and whether there is room for a second worker of one (an A/A).

    A pair is never parted: rows of two groups play other rounds, and have no ratio to each other.
    """
    most = max(1, (places - 1) // 2)
    for start in range(0, len(pairs), most):
        chunk = list(pairs[start : start + most])
        yield chunk, sum(len(pair.rows) for pair in chunk) < places


def _row(row: SuiteImplementation, end: str, registry: Registry) -> SuiteImplementation | None:
    path = row.path or registry.get(row.name)
    if path is None:
        return None
    # not validated: no suite may call a row so, which is what keeps these names apart from all others
    return SuiteImplementation.model_construct(name=row.name + end, path=path, options=row.options)
