"""The shipped schema is what the records stand for, closed everywhere, and names the place of a breach."""

from __future__ import annotations

import json

import pytest
from jsonschema import Draft202012Validator
from receipt_records import RECORDS

from fixtures.receipts import sample
from receipts import SCHEMA_ID, schema
from receipts.codec import MAX_INTEGER, hints, optional_names
from receipts.errors import ReceiptError


def test_the_shipped_file_is_the_generated_one():
    assert schema.SCHEMA_FILE.read_text(encoding="utf-8") == schema.text(), (
        "write it again: python -c 'from receipts import schema; schema.SCHEMA_FILE.write_text(schema.text())'"
    )


def test_it_is_a_schema_of_its_dialect_with_an_id():
    shipped = schema.load()
    assert shipped["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert shipped["$id"] == SCHEMA_ID
    Draft202012Validator.check_schema(shipped)


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.__name__)
def test_every_record_is_a_closed_object(record):
    definition = schema.load()["$defs"][record.__name__]
    assert definition["additionalProperties"] is False
    assert set(definition["properties"]) == set(hints(record))
    assert set(definition["required"]) == set(hints(record)) - optional_names(record)
    assert definition["description"]


def test_it_accepts_receipts_by_itself():
    validator = Draft202012Validator(schema.load())
    for build in (sample.minimal, sample.full):
        data = build().to_dict()
        assert not list(validator.iter_errors(data))
        assert list(validator.iter_errors(data | {"mood": "good"}))


def test_every_breach_is_found_with_its_place():
    data = sample.minimal().to_dict()
    data["models"][0]["sha256"] = "ABC"
    data["lanes"][0]["rungs"][1]["compared"] = -1
    del data["identity"]["run_id"]
    found = {problem.path: problem.reason for problem in schema.problems(data)}
    assert set(found) == {"models[0].sha256", "lanes[0].rungs[1].compared", "identity.run_id"}
    assert found["identity.run_id"] == "required field is missing"
    assert "minimum" in found["lanes[0].rungs[1].compared"]


def test_breaches_are_limited():
    data = sample.minimal().to_dict()
    data["kernels"] = [""] * 100
    assert len(schema.problems(data)) == 20


@pytest.mark.parametrize(
    ("label", "good", "bad"),
    [
        ("sha256", "0" * 64, "0" * 64 + "\n"),
        ("sha256", "0123456789abcdef" * 4, "0" * 63),
        ("sha256_or_empty", "", "0"),
        ("time", "2026-01-02T03:04:05.123Z", "2026-01-02T03:04:05+01:00"),
        ("time", "2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z\n"),
        ("count", str(MAX_INTEGER), "7"),
        ("count", 0, -1),
        ("token", 0, 2**31),
        ("index", -1, -2),
        ("amount", 0, -0.1),
        ("share", 1, 1.1),
        ("name", "x", ""),
        ("rows_file", f"rows/{'a' * 64}.json", f"rows/../{'a' * 64}.json"),
    ],
)
def test_each_scalar_rule_accepts_and_refuses(label, good, bad):
    schema.check(good, definition=label)
    with pytest.raises(ReceiptError):
        schema.check(bad, definition=label)


def test_a_missing_schema_is_said_so(monkeypatch, tmp_path):
    schema.load.cache_clear()
    monkeypatch.setattr(schema, "SCHEMA_FILE", tmp_path / "none.json")
    try:
        with pytest.raises(ReceiptError, match="schema is missing"):
            schema.load()
    finally:
        schema.load.cache_clear()


def test_it_is_json_that_people_can_read():
    lines = schema.SCHEMA_FILE.read_text(encoding="utf-8").splitlines()
    assert max(map(len, lines)) < 400
    assert json.loads("\n".join(lines)) == schema.generate()
