"""Histories: folders, files and JSON Lines, oldest first, and what is no receipt among them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fixtures.receipts import sample
from fixtures.receipts.build import HERE
from receipts import MissingReceiptError, seal, write
from receipts.history import history, to_json


def test_a_folder_is_sorted_by_time(tmp_path):
    early = replace(sample.minimal(), timestamp="2025-01-02T03:05:05Z")
    write(sample.minimal(), tmp_path / "a.json")
    write(early, tmp_path / "b.json")
    (tmp_path / "c.json").write_text("{}")
    entries = history([tmp_path])
    assert [entry.file[-6:] for entry in entries] == ["c.json", "b.json", "a.json"]
    assert entries[0].problem
    assert (entries[1].parity, entries[1].passed, entries[1].required) == ("ok", 1, 1)
    assert json.loads(to_json(entries))[2]["timestamp"] == sample.minimal().timestamp


def test_lines_are_receipts(tmp_path):
    path = tmp_path / "all.jsonl"
    good = json.dumps(seal(sample.minimal()).to_dict())
    path.write_text(f"{good}\n\nnot json\n[]\n{good.replace('fixture', 'future')}\n")
    assert [bool(entry.problem) for entry in history([path])].count(True) == 3
    assert len(history([path])) == 4


def test_the_fixtures_are_a_history():
    assert sum(not entry.problem for entry in history([HERE / "valid"])) == 3


def test_a_missing_place_is_wrong_usage(tmp_path):
    with pytest.raises(MissingReceiptError):
        history([tmp_path / "none"])
