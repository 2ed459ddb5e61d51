"""What changed between two receipts, and whether it decides anything."""

from __future__ import annotations

from dataclasses import replace

from fixtures.receipts import sample
from receipts.diff import diff

BASE = sample.minimal()


def test_equal_receipts_do_not_differ():
    assert diff(BASE, BASE) == ()


def test_another_day_and_place_decide_nothing():
    other = replace(
        BASE,
        identity=replace(BASE.identity, git_commit="a" * 40),
        environment=replace(BASE.environment, cpu="another"),
    )
    changes = diff(BASE, other)
    assert {change.part for change in changes} == {"machine", "commit"}
    assert not any(change.decides for change in changes)


def test_results_decide():
    case = replace(BASE.cases[0], logits_sha256=sample.sha("other"))
    lane = replace(BASE.lanes[0], outcome="fail")
    changes = diff(BASE, replace(BASE, cases=(case,), lanes=(lane,)))
    assert [(c.part, c.decides) for c in changes] == [("lanes", True), ("cases", True)]
    assert changes[0].what.endswith(".outcome")
    assert (changes[0].before, changes[0].after) == ("pass", "fail")


def test_what_is_gone_or_new_is_told():
    changes = diff(BASE, replace(BASE, lanes=(), kernels=("other",)))
    assert [(c.part, c.before != "", c.after != "") for c in changes] == [
        ("lanes", True, False),
        ("kernels", True, True),
    ]
