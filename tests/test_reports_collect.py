"""Receipts as rows: what they measured, and why one could not be read."""

from __future__ import annotations

import json

import history_sample
import pytest
import reports_sample as sample

from receipts import ReceiptError
from reports import collect
from reports.collect import Value, seen


def read(data, **options):
    return seen(("x", json.dumps(data).encode()), **options)


def test_what_a_receipt_measured():
    found = read(history_sample.whole().to_dict())
    assert (found.problem, found.parity) == ("", "failed")
    assert found.commit == "da57638"
    assert found.machine == "x86_64 · A CPU · 2 cores"
    values = {(value.series, value.unit): value for value in found.values}
    speed = values["tiny-silu · decode", "tokens/s"]
    ratio = values["tiny-silu · decode ÷ llama.cpp", "× the peer"]
    assert speed.kind == ratio.kind == "speed"
    assert 0.9 < ratio.value < 1.2
    drift = values["tiny-silu · oracle · operations", "of its limit"]
    assert drift == Value("drift", drift.series, "of its limit", pytest.approx(0.14))
    assert {("tiny-silu · load", "s"), ("tiny-silu · first_token", "s")} < set(values)
    assert not [series for series, _ in values if "as bitnet" in series]  # a known deviation is no drift


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"schema_version": "2.0.0"}, "schema 2 is not known"),
        ({"timestamp": 7}, "is no text"),
        ({"lanes": 3}, "form of a receipt"),
        ({"parity": None}, "form of a receipt"),
        ({"performance": [{}]}, "form of a receipt"),
    ],
)
def test_what_is_no_receipt_has_a_problem(change, problem):
    assert problem in read(history_sample.whole().to_dict() | change).problem


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 100_000, b"\xff", b'{"schema_version": 1}', b"1" * 5000])
def test_nonsense_has_a_problem(content):
    assert seen(("x", content)).problem


def test_values_that_are_no_size_are_refused_or_left_out():
    data = history_sample.whole().to_dict()
    data["performance"][0]["tokens_per_second"] = -1
    assert "is no size" in read(data).problem
    data["performance"][0]["tokens_per_second"] = float("nan")
    assert read(data).problem == ""


def test_digests_are_checked_when_asked():
    data = history_sample.whole().to_dict()
    assert not read(data, verified=True).problem
    data["timestamp"] = "2026-01-01T00:00:00Z"
    assert not read(data).problem
    assert "digest" in read(data, verified=True).problem


def test_several_processes_find_the_same(tmp_path, monkeypatch):
    path = history_sample.write(tmp_path, 45)
    alone = list(collect.collect([path]))
    monkeypatch.setattr(collect, "BATCH", 10)
    assert list(collect.collect([path], workers=2)) == alone
    assert [bool(one.problem) for one in alone] == [False] * 45 + [True] * 2


def test_a_missing_place_is_an_error(tmp_path):
    with pytest.raises(ReceiptError):
        list(collect.collect([tmp_path / "none"]))


def test_the_sample_is_what_it_says():
    assert len(list(history_sample.lines(3))) == 3
    assert sample.receipt().identity.git_commit == "da57638"
