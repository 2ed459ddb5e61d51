"""Every rule is entered once, says what it asks in a sentence, and is broken by at least one liar."""

from __future__ import annotations

import pytest

import receipts.verify  # noqa: F401  # enters all rules
from fixtures.receipts.holes import HOLES
from receipts.rule import RULES, key, rule


@pytest.mark.parametrize("name", RULES)
def test_every_rule_has_a_liar_that_breaks_it(name):
    assert [hole for hole in HOLES if name in hole.rules.split()]


@pytest.mark.parametrize("entry", RULES.values(), ids=lambda r: r.name)
def test_every_rule_says_what_it_asks(entry):
    assert entry.says.endswith(".")
    assert entry.says[0].isupper() or entry.says[0] == "`"
    assert entry.name.count(".") == 1


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="two rules"):
        rule("ledger.calls", "Again.")(lambda view: iter(()))


def test_numerics_tell_ledgers_apart_in_any_order():
    assert key("m", {"a": "1", "b": "2"}) == key("m", {"b": "2", "a": "1"})
    assert key("m", {"a": "1"}) != key("m", {"a": "2"})
