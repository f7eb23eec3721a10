"""examples/finetune_head.py: the swapped loss trains like torch's."""

from __future__ import annotations

from examples import finetune_head


def test_both_curves_are_the_same_and_go_down(capsys) -> None:
    gap = finetune_head.main()
    printed = capsys.readouterr().out
    assert gap < 1e-4
    first, last = (float(line.split()[-1]) for line in printed.splitlines()[:-1:5])
    assert last < first - 1
