"""Side tables that are not the listed ones, or contradict their lanes, are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from receipt_liars import NOW, check_liar, liars

from fixtures.receipts import sample
from receipts.record import SideFile
from receipts.rule import RULES, View


@pytest.mark.parametrize("hole", liars("check_files"), ids=lambda hole: hole.name)
def test_each_liar_is_refused_by_the_rule_that_should(hole):
    check_liar(hole)


def findings(**changes):
    row = sample.operations("tiny-relu2 / oracle")[0] | changes
    receipt = replace(sample.minimal(), side_files=(SideFile(table="operations", file="", sha256="", bytes=0, rows=1),))
    return list(RULES["side_files.operations"].check(View(receipt, ([row],), NOW)))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_abs_err": 0.0, "max_abs_ref": 0.0, "ratio": 0.0},
        {"max_abs_err": 0.0, "max_abs_ref": 0.0, "ratio": None},
        {"outcome": "inconclusive", "compared": 0},
        {"ratio": 2e-7 * (1 + 1e-7)},
    ],
)
def test_honest_rows_hold(changes):
    assert not findings(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"outcome": "great"},
        {"max_abs_err": -1e-7, "ratio": -2e-7},
        {"max_abs_err": None},
        {"max_abs_err": 1e-7, "max_abs_ref": 0.0, "ratio": None},
        {"max_abs_err": 1e-3, "ratio": 2e-3},
        {"ratio": 1e-9},
        {"ratio": None},
        {"compared": 0},
    ],
)
def test_lying_rows_do_not(changes):
    assert findings(**changes)


def test_a_table_is_listed_once():
    receipt = sample.minimal()
    side = SideFile(table="operations", file="", sha256="", bytes=0, rows=0)
    view = View(replace(receipt, side_files=(side, side)), ([], []), NOW)
    assert list(RULES["side_files.content"].check(view)) == [("side_files[1].table", "a second table 'operations'")]
