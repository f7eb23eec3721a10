"""Footnotes of a table: numbered in order of appearance, the same words only once."""

from __future__ import annotations

import re

from harness.analysis.formats import ms
from harness.record import NOT_RUN, Record, Status

LONGEST = 400  # characters of a reason that a table repeats; records.jsonl has all of it
IN_THE_INTERPRETER = "ran in the Triton interpreter: agreement only, its time means nothing"

_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


class Footnotes:
    """Collects footnotes while a table is written."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, text: str) -> str:
        """The mark that refers to `text`, a superscript number."""
        return _superscript(self._numbers.setdefault(text, len(self._numbers) + 1))

    def lines(self) -> list[str]:
        """The footnotes as a markdown list."""
        return [f"- {_superscript(count)} {plain(text)}" for text, count in self._numbers.items()]


def explanation(record: Record) -> str | None:
    """Why a row is not ok, and what the suite said about it beforehand; None if there is nothing to explain."""
    expected = record.expected
    wanted = " or ".join(status.value for status in expected.status) if expected else ""
    if record.status is Status.OK:
        if expected is not None and Status.OK not in expected.status:
            return f"ok, though the suite expects {wanted}: {expected.reason}"
        return None
    reason = shortened(record.reason or "")
    if record.status in NOT_RUN:
        return reason  # says it all: that it was expected is no news
    if expected is not None and record.status in expected.status:
        same = reason == shortened(expected.reason)
        return f"expected: {expected.reason}" if same else f"{reason}; expected: {expected.reason}"
    if expected is not None:
        return f"{reason}; not expected, the suite expects {wanted}: {expected.reason}"
    return reason


def amortised(record: Record) -> str:
    """`fwd+bwd includes 0.060 ms a call: 30.0 ms of work are kept over 500 calls`, as no sample has it."""
    share_ms, calls = record.amortised_ms, record.amortised_calls
    return f"fwd+bwd includes {ms(share_ms)} ms a call: {ms(share_ms * calls)} ms of work are kept over {calls:g} calls"


def shortened(reason: str) -> str:
    """A reason on one line, without the end of a long traceback."""
    line = " ".join(reason.split()).rstrip(".;")
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 2]} …"


def plain(text: str) -> str:
    """Escapes what markdown would swallow or turn into emphasis: <module>, *, __init__; code in backticks stays."""
    return re.sub(r"`[^`]*`|[<*]|__", _escaped, text)


def status_words(status: Status) -> str:
    """A status as a table shows it."""
    return status.value.replace("_", " ")


def _escaped(match: re.Match[str]) -> str:
    found = match[0]
    return found if found.startswith("`") else "".join(f"\\{character}" for character in found)


def _superscript(count: int) -> str:
    return str(count).translate(_SUPERSCRIPTS)
