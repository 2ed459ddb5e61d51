"""What was seen: every record of the evidence goes to JSON and back."""

from __future__ import annotations

import pytest

from fixtures.receipts.sample import full
from receipts.evidence import Ledger, LedgerEntry


@pytest.mark.parametrize("part", ["ledger", "cases", "references", "accuracy", "determinism", "performance"])
def test_round_trip(part):
    records = getattr(full(), part)
    assert records
    for record in records:
        assert type(record).from_dict(record.to_dict()) == record
        record.validate()


def test_fallback_is_unknown_until_somebody_knows():
    entry = LedgerEntry(kernel="k", role="head", weight_type="F16", isa="avx2", calls=1, rows=1, bytes=1)
    assert entry.fallback == "unknown"


def test_counts_beyond_doubles_are_text():
    entry = LedgerEntry(kernel="k", role="head", weight_type="F16", isa="avx2", calls=1, rows=2**60, bytes=1)
    part = Ledger(model="m", tokens=1, passes=1, head_rows=1, entries=(entry,))
    data = part.to_dict()
    assert data["entries"][0]["rows"] == "1152921504606846976"
    part.validate()
    assert Ledger.from_dict(data) == part
