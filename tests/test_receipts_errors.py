"""A receipt's error says what, where in the record, in which file, and what to do."""

from __future__ import annotations

from receipts.errors import MissingReceiptError, ReceiptError, ReceiptLimitError


def test_message_carries_the_path():
    assert (
        str(ReceiptError("nothing was compared", path="lanes[2].rungs")) == "nothing was compared in 'lanes[2].rungs'"
    )


def test_message_carries_file_and_remedy():
    error = ReceiptError("is empty", path="lanes", remedy="run it").inside("ci/inference.json")
    assert str(error) == "ci/inference.json: is empty in 'lanes'\n  hint: run it"


def test_exit_codes_are_the_designs():
    assert ReceiptError("").exit_code == 5
    assert ReceiptLimitError("").exit_code == 5
    assert MissingReceiptError("").exit_code == 2
