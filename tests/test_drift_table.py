"""Rates: Wilson intervals, promises kept and missed, and a report that its schema knows."""

from __future__ import annotations

import json

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossval.drift import Trial
from crossval.drift_table import Rate, check, rates, report, table, wilson, write


def trial(kind="single", *, detected=True, attributed=True, hidden="", name="activation=silu"):
    return Trial(
        model="m",
        seed=1,
        kind=kind,
        defects=(name,) if kind != "clean" else (),
        hidden=hidden,
        detected=detected,
        expected="q of layer 0",
        found="q of layer 0",
        attributed=attributed,
    )


def test_wilson_against_known_values():
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)


@given(st.integers(1, 500), st.data())
def test_an_interval_holds_its_rate(n, data):
    k = data.draw(st.integers(0, n))
    low, high = wilson(k, n)
    assert 0.0 <= low <= k / n <= high <= 1.0


def test_nothing_tried_is_no_promise_kept():
    assert not Rate(what="x", n=0, k=0, target=0.0).met
    assert not Rate(what="x", n=0, k=0, target=0.01, at_most=True).met


def test_a_study_of_liars_misses_its_promises():
    blind = [trial(detected=False, attributed=False) for _ in range(10)] + [trial("clean", detected=True)]
    assert not any(rate.met for rate in rates(blind))
    good = [trial(), trial("pair"), trial("clean", detected=False), trial(detected=False, hidden="moves nothing")]
    assert all(rate.met for rate in rates(good))
    assert len(rates(good)) == 5


def test_a_report_is_valid_and_written_whole(tmp_path):
    trials = [trial(), trial(name="tensor_zero: blk.0.attn_q.weight"), trial(name="rms_eps=0.001"), trial("clean")]
    made = report(trials, first_seed=1000, seconds=1.5)
    assert [e["name"] for e in made["entries"]] == ["activation=silu", "tensor_zero", "rms_eps"]
    path = tmp_path / "new" / "drift.json"
    write(made, path)
    assert json.loads(path.read_text()) == made
    assert not list(path.parent.glob("*.part"))
    with pytest.raises(jsonschema.ValidationError):
        check({**made, "extra": 1})
    assert table(trials).row_count == 4
