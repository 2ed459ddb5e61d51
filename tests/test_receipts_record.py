"""Every record survives the way to JSON and back, and refuses what it is not, naming the place."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from receipt_records import RECORDS, records

from fixtures.receipts import sample
from receipts import Receipt, ReceiptError
from receipts.codec import canonical
from receipts.record import OUTCOMES, RUNGS, Claims, Rung

SAMPLES = [sample.minimal, sample.full, sample.gate_failed]


@pytest.mark.parametrize("build", SAMPLES)
def test_round_trip(build):
    receipt = build()
    again = Receipt.from_dict(json.loads(canonical(receipt.to_dict())))
    assert again == receipt
    assert canonical(again.to_dict()) == canonical(receipt.to_dict())


@pytest.mark.parametrize("record", [r for r in RECORDS if r is not Receipt], ids=lambda r: r.__name__)
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_round_trip_of_any_values(record, data):
    value = data.draw(records(record))
    again = record.from_dict(json.loads(canonical(value.to_dict())))
    assert again == value
    assert canonical(again.to_dict()) == canonical(value.to_dict())
    value.validate()


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.__name__)
def test_records_are_frozen_slotted_and_keyword_only(record):
    assert record.__dataclass_params__.frozen
    assert "__slots__" in vars(record)
    assert all(f.kw_only for f in dataclasses.fields(record))


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.__name__)
def test_records_say_what_they_are(record):
    assert record.__doc__
    assert not record.__doc__.startswith(f"{record.__name__}(")  # what dataclass writes where nobody did


def test_lookups():
    receipt = sample.full()
    assert receipt.model("tiny-silu").activation == "silu"
    assert receipt.reference("llama.cpp").family == "ggml"
    assert receipt.model("none") is None
    assert receipt.reference("none") is None


def test_constants_are_the_ladder_and_the_outcomes():
    assert RUNGS == ("identity", "tokens", "weights", "operations", "logits", "decode", "greedy", "quality")
    assert OUTCOMES == ("pass", "fail", "error", "unsupported", "inconclusive")


def test_unknown_field_is_refused_with_its_place():
    data = sample.minimal().to_dict()
    data["lanes"][0]["rungs"][2]["mood"] = "good"
    with pytest.raises(ReceiptError, match=r"unknown field 'mood' in 'lanes\[0\].rungs\[2\]'"):
        Receipt.from_dict(data)


def test_missing_field_is_refused_with_its_place():
    data = sample.minimal().to_dict()
    del data["models"][0]["hyper_parameters"]["n_ff"]
    with pytest.raises(ReceiptError) as caught:
        Receipt.from_dict(data)
    assert caught.value.path == "models[0].hyper_parameters.n_ff"


def test_absent_optional_field_has_its_default():
    data = sample.minimal().to_dict()
    del data["side_files"]
    assert Receipt.from_dict(data).side_files == ()


def test_validate_knows_what_types_do_not():
    with pytest.raises(ReceiptError) as caught:
        Rung(name="tokens", outcome="pass", why="", compared=-1).validate()
    assert caught.value.path == "compared"
    Claims().validate()
