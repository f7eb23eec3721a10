"""How many tokens fit on a card of a given size, per implementation; asked of workers, printed as a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from harness.case import Case
from harness.running.process import Worker, WorkerFailure
from implementations.registry import REGISTRY

CONTEXT_BYTES = 700 << 20  # a CUDA context with its modules, which torch's allocator does not see
GIB = 1 << 30
_TIMEOUT_S = 900.0  # of one implementation: a few ten calls, each compiled anew where something compiles


@dataclass(frozen=True)
class Capacity:
    """What one implementation can take."""

    implementation: str
    tokens: dict[int, int]  # by the card's GiB; 0 where not even the fewest fit; empty where there is a reason
    reason: str | None = None


def capacities(
    names: Sequence[str], case: Case, cards_gib: Sequence[int], logs: Path, notice: Callable[[str], None]
) -> Iterator[Capacity]:
    """One for each name of the registry; `case` says everything but the tokens."""
    cards = sorted(cards_gib)
    limits = [card * GIB - CONTEXT_BYTES for card in cards]
    for name in names:
        notice(name)
        worker = Worker(logs / f"{name}.log")
        with closing(worker):
            try:
                answer: dict[str, Any] = worker.request(
                    "largest_fits",
                    _TIMEOUT_S,
                    path=REGISTRY[name],
                    options={},
                    case=case.model_dump(mode="json"),
                    limits_bytes=limits,
                )
            except WorkerFailure as failure:
                yield Capacity(name, {}, f"{failure.status.value}: {failure.reason}")
                continue
        if "refused" in answer:
            yield Capacity(name, {}, f"unsupported: {answer['refused']}")
        else:
            yield Capacity(name, dict(zip(cards, answer["tokens"], strict=True)))


def as_table(found: Sequence[Capacity], cards_gib: Sequence[int]) -> str:
    """Markdown: a row per implementation, a column per card, and why there is no number."""
    body = [
        [row.implementation, *(row.tokens.get(card, "—") for card in sorted(cards_gib)), row.reason or ""]
        for row in found
    ]
    headers = ["implementation", *(f"{card} GiB" for card in sorted(cards_gib)), ""]
    align = ["left", *["right"] * len(cards_gib), "left"]
    return tabulate(body, headers=headers, tablefmt="pipe", colalign=align, disable_numparse=True)


def as_json(found: Sequence[Capacity], case: Case) -> str:
    """The same with the case, whose own number of tokens means nothing."""
    described = case.model_dump(mode="json", exclude={"tokens"})
    return json.dumps({"case": described, "capacities": [asdict(row) for row in found]}, indent=1)
