"""Every interval that docs/statistics.md quotes from a report is what its records give."""

from __future__ import annotations

import re
from pathlib import Path

from harness.analysis.frame import read_records
from harness.analysis.statistics.ratio import ratio_interval
from harness.analysis.statistics.turns import turns_of
from harness.analysis.statistics.verdict import verdict_of

ORIGIN = re.compile(r"<!-- from (\S+), case (\S+); .*?-->\n((?:\|.*\n)+)")


def test_the_table_is_in_the_records() -> None:
    ((directory, case, table),) = ORIGIN.findall(Path("docs/statistics.md").read_text())
    turns = {r.implementation: turns_of(r) for r in read_records(Path(directory)) if r.case_id == case}
    for line in table.splitlines()[2:]:
        head, base, *quoted = (cell.strip() for cell in line.strip().strip("|").split("|"))
        of_head, of_base = turns[head], turns[base]
        assert of_head is not None and of_base is not None
        ratio = ratio_interval(of_head, of_base)
        assert ratio is not None
        interval = f"{ratio.low:.3f} to {ratio.high:.3f}"
        assert quoted == [f"{ratio.estimate:.3f}", interval, str(ratio.rounds), verdict_of(ratio).value]
