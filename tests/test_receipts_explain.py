"""A receipt in sentences: it claims no more than was checked, and says what was not."""

from __future__ import annotations

from receipt_liars import NOW

from fixtures.receipts.build import HERE
from receipts.explain import explain
from receipts.verify import verify


def told(name):
    sections = explain(verify(HERE / f"{name}.json", now=NOW))
    return {section.title: " ".join(section.sentences) for section in sections}


def test_a_good_receipt_shows_something_and_not_everything():
    text = told("valid/full")
    assert "7 of 8 rungs agree" in text["What it shows, if its writer did not invent it"]
    assert "deviates as declared (activation=silu)" in text["What it shows, if its writer did not invent it"]
    open_questions = text["What it does not show"]
    for word in ("no signature was asked for", "nothing was recomputed", "near-ties", "fallback", "It says itself"):
        assert word in open_questions


def test_a_failed_gate_is_told():
    assert "Gate (strict): failed." in told("valid/gate-failed")["Checked here"]


def test_a_false_receipt_proves_nothing():
    [(title, text)] = told("invalid/rate-invented").items()
    assert title == "It proves nothing"
    assert "performance.rate" in text
