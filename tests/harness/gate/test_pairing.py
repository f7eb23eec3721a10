"""From a suite to the rows of a gate."""

from __future__ import annotations

from harness.case import Case
from harness.gate.pairing import chunks_of, paired_suite, pairs_of
from harness.suite import Suite

CASE = Case(tokens=8192, hidden_size=2304, vocab_size=256000)
SUITE = Suite.model_validate(
    {
        "name": "s",
        "description": "d",
        "cases": [{"tokens": 8192, "hidden_size": 2304, "vocab_size": 256000}],
        "implementations": [
            "lower-bound",
            "baseline",
            "ours",
            {"name": "cce", "options": {"x": 1}},
            {"name": "mine", "path": "a.b:c"},
        ],
        "expectations": [{"implementation": "cce", "status": "disagrees", "reason": "known"}],
    }
)
NAMES = ["lower-bound", "baseline", "ours", "cce", "mine"]
BASE = {"baseline": "b:b", "cce": "old.cce:cce"}
HEAD = {"baseline": "b:b", "cce": "new.cce:cce", "ours": "o:o"}


def test_each_tree_says_where_its_own_rows_are() -> None:
    pairs = {pair.name: pair for pair in pairs_of(SUITE, NAMES, BASE, HEAD)}
    assert list(pairs) == ["baseline", "ours", "cce", "mine"]  # nobody can change the lower bound
    cce = pairs["cce"]
    assert [(row.name, row.location, row.options) for row in cce.rows] == [
        ("cce@base", "old.cce:cce", {"x": 1}),
        ("cce@head", "new.cce:cce", {"x": 1}),
    ]
    assert [row.name for row in pairs["ours"].rows] == ["ours@head"]  # new
    assert pairs["ours"].names == ("ours@base", "ours@head")
    assert [row.location for row in pairs["mine"].rows] == ["a.b:c", "a.b:c"]  # the path is the suite's


def test_expectations_are_of_both_rows_and_the_budget_is_the_gates() -> None:
    suite = paired_suite(SUITE, pairs_of(SUITE, NAMES, BASE, HEAD), 7.0)
    for name in ("cce@base", "cce@head"):
        expected = suite.expectation(name, CASE)
        assert expected is not None and expected.reason == "known"
    assert suite.expectation("ours@head", CASE) is None
    assert suite.measurement.case_budget_s == 7.0 and SUITE.measurement.case_budget_s == 60.0
    assert suite.reference == suite.measured_twice == "baseline@base"


def test_a_pair_is_never_parted() -> None:
    pairs = pairs_of(SUITE, NAMES, HEAD, HEAD)
    assert len(pairs) == 4
    found = {
        places: [(len(chunk), second) for chunk, second in chunks_of(pairs, places)] for places in (1, 2, 3, 5, 99)
    }
    assert found[99] == [(4, True)]
    assert found[5] == [(2, True), (2, True)]
    assert found[3] == [(1, True)] * 4
    assert found[2] == found[1] == [(1, False)] * 4  # no room for an A/A; a pair is measured all the same
