"""The tampering itself: it changes what it says, and catches what the verifier catches."""

from __future__ import annotations

import json
import random

import pytest
import tamper
from receipt_liars import NOW

from fixtures.receipts import sample
from fixtures.receipts.changes import ROWS
from receipts import digest_of, write
from receipts.errors import ReceiptError
from receipts.verify import verify


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("t") / "r.json"
    write(sample.minimal(), path, ROWS)
    return tamper.original(path)


def test_an_original_is_not_refused(source):
    assert tamper.caught_by(source.data, source.tables) == ""
    assert tamper.caught_in_bytes(source.content, source) == "the same"


def test_changed_bytes_are_caught_as_the_verifier_does(source, tmp_path):
    rng = random.Random(1)
    for _ in range(40):
        raw = tamper.flipped(source.content, rng)
        by = tamper.caught_in_bytes(raw, source)
        assert by
        if by != "the same":
            (tmp_path / "r.json").write_bytes(raw)
            assert verify(tmp_path / "r.json", gate=False, now=NOW).exit_code == 5


def test_changed_fields_are_judged_as_the_verifier_does(source):
    rng = random.Random(2)
    places = tamper.leaves(source.data)
    pool = [tamper.reach(source.data, way) for _, way in places]
    before = json.dumps(source.data)
    rules = tamper.Rules(source)
    for path, way in rng.sample(places, 60):
        data = tamper.changed(source, way, path, pool, rng)
        if data is None:
            continue
        assert data != source.data
        by = tamper.caught_in_field(data, source, rules)
        copy = source.path.with_name("changed.json")
        try:
            copy.write_text(json.dumps(data | {"digest": digest_of(data)}))
        except ReceiptError:  # what has no canonical form has no digest
            assert by
            continue
        assert (verify(copy, gate=False, now=NOW).exit_code == 5) is bool(by), (path, by)
    assert json.dumps(source.data) == before


def test_changed_tables_are_judged_as_by_all_rules(source):
    rng, rules = random.Random(3), tamper.Rules(source)
    tried = 0
    while tried < 60:
        made = tamper.swapped(source, source, rng)
        if made is not None:
            tried += 1
            data, tables, how = made
            by = tamper.caught_in_table(data, tables, rules)
            assert bool(by) == bool(tamper.caught_by(data, tables, digest=False)), (how, by)
