"""Each liar about what `receipts.check_profiles` asks is refused by the rule that should."""

from __future__ import annotations

from dataclasses import replace

import pytest
from receipt_liars import NOW, check_liar, liars

from fixtures.receipts import sample
from fixtures.receipts.changes import LANE
from receipts.record import NearTie, SideFile
from receipts.rule import RULES, View


@pytest.mark.parametrize("hole", liars("check_profiles"), ids=lambda hole: hole.name)
def test_each_liar_is_refused_by_the_rule_that_should(hole):
    check_liar(hole)


def findings(rule, receipt=None, **tables):
    files = tuple(SideFile(table=name, file="", sha256="", bytes=0, rows=len(rows)) for name, rows in tables.items())
    receipt = replace(receipt or sample.minimal(), side_files=files)
    return list(RULES[rule].check(View(receipt, tuple(tables.values()), NOW)))


def profiled(**changes):
    first, *rest = sample.profiles(LANE)
    return findings("tables.profiles", operations=sample.operations(LANE), profiles=[first | changes, *rest])


def test_honest_profiles_hold():
    assert not profiled()
    assert not profiled(errors=[0.0, 5e-8, 1e-7, 1.999e-7, 0.0])  # three digits


@pytest.mark.parametrize(
    "changes",
    [
        {"tap": "q"},
        {"layer": 1},
        {"errors": []},
        {"errors": [2e-7] * 3},
        {"errors": [0.0, 0.0, 0.0, 3e-7, 0.0]},
        {"errors": [2e-7, 0.0, 0.0, 0.0, 0.0]},
        {"errors": [-1e-8, 0.0, 0.0, 2e-7, 0.0]},
        {"errors": [0.0, 0.0, None, 2e-7, 0.0]},
        {"ours": [1280]},
        {"ours": [0] * 17},
        {"theirs": [0, 0, 1280, *[0] * 14]},
        {"theirs": [-1, *[0] * 15, 1281]},
    ],
)
def test_lying_profiles_do_not(changes):
    assert profiled(**changes)


def test_a_missing_or_second_profile_is_found():
    rows, operations = sample.profiles(LANE), sample.operations(LANE)
    assert findings("tables.profiles", operations=operations, profiles=rows[:1])
    assert findings("tables.profiles", operations=operations, profiles=[*rows, rows[0]])


def told(receipt=None, **changes):
    rows = sample.tokens(LANE)
    at = changes.pop("at", 6)
    return findings("tables.tokens", receipt, tokens=[*rows[:at], rows[at] | changes, *rows[at + 1 :]])


def test_honest_tokens_hold():
    assert not told()
    assert not findings("tables.tokens", tokens=sample.tokens(LANE)[:5])


def tied():
    """The engine chose 61 where the reference chose 9, which noise explains."""
    receipt = sample.minimal()
    lane = receipt.lanes[0]
    tie = NearTie(case="fox", position=5, margin=1e-4, floor=1e-3, ours=61, theirs=9)
    rungs = tuple(replace(rung, near_ties=(tie,)) if rung.name == "greedy" else rung for rung in lane.rungs)
    return replace(receipt, lanes=(replace(lane, rungs=rungs),))


def test_another_choice_is_a_near_tie_or_a_lie():
    assert not told(tied(), id=9, text=" nine")
    assert told(id=9, text=" nine")
    assert told(tied())


def failed(measured, *ties):
    receipt = sample.minimal()
    lane = receipt.lanes[0]
    changes = {"outcome": "fail", "measured": measured, "limit": 0.0, "metric": "different tokens", "near_ties": ties}
    rungs = tuple(replace(rung, **changes) if rung.name == "greedy" else rung for rung in lane.rungs)
    return replace(receipt, lanes=(replace(lane, rungs=rungs),))


@pytest.mark.parametrize(
    ("changes", "odd"),
    [
        ({"at": 7, "ours": 9, "ours_text": " nine"}, 1),  # than the reference, and than itself
        ({"at": 5, "id": 9, "text": " nine"}, 1),  # than the reference
        ({"at": 6, "id": 9, "text": " nine", "ours": 9, "ours_text": " nine"}, 1),  # than itself
        ({"at": 5, "id": 9, "text": " nine", "ours": 8, "ours_text": " eight"}, 1),
    ],
)
def test_a_greedy_rung_that_failed_counts_what_its_table_shows(changes, odd):
    """That the engine contradicts itself is what the rung is there to find."""
    tie = NearTie(case="fox", position=5, margin=1e-4, floor=1e-3, ours=61, theirs=9)
    assert not told(failed(float(odd)), **changes)
    assert not told(failed(odd - 1.0, tie), **changes)
    for measured in (0.0, odd + 1.0):
        assert told(failed(measured), **changes)
    assert told(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"position": 7},
        {"at": 2, "id": 31},
        {"at": 2, "ours": 30},
        {"ours": None},
        {"at": 7, "text": " two ways", "id": 60, "ours": 60, "ours_text": " two ways"},
        {"id": 63, "ours": 63},
    ],
)
def test_lying_tokens_do_not(changes):
    assert told(**changes)


def test_a_case_listed_twice_is_found():
    rows = sample.tokens(LANE)
    other = [row | {"case": "other"} for row in rows]
    assert findings("tables.tokens", tokens=[*rows, *other, *rows])


def test_a_shorter_continuation_is_found():
    assert findings("tables.tokens", tokens=sample.tokens(LANE)[:7])
