"""Rates: Wilson intervals, promises kept and missed, and a report that its schema knows."""

from __future__ import annotations

import json

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossval.drift import Trial
from crossval.drift_table import Rate, check, rates, report, table, wilson, write


def trial(kind="single", *, detected=True, attributed=True, hidden="", name="activation=silu", **told):
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
        **told,
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


def test_liars_on_logits_and_ids_miss_their_promises():
    """One that sees nothing, one that names something else, one that finds everything possible."""
    blind = [trial(detected=False, attributed=False), trial("clean", detected=True)]
    assert [rate.met for rate in rates(blind, "logits")] == [False, False]
    assert [rate.met for rate in rates(blind, "ids")] == [False, False]
    other = [trial(attributed=False, named=True), trial("pair", attributed=False, named=True)]
    met = {rate.what: rate.met for rate in rates(other, "logits")}
    assert met.pop("detected")
    assert not any(met.values())
    anything = [trial(causes=tuple("abcdefgh"), together=True), trial(causes=tuple("abcdefgh"), together=False)]
    assert {rate.what: rate.met for rate in rates(anything, "ids")} == {
        "detected": True,
        "cause among those that fit, one defect": False,
        "at most five fit, one defect": False,
    }


def test_good_studies_keep_them():
    good = [trial(named=True), trial("pair", named=True), trial("clean", detected=False)]
    assert len(rates(good, "logits")) == 6
    assert all(rate.met for rate in rates(good, "logits"))
    good = [trial(causes=("activation=silu",), together=True), trial("clean", detected=False)]
    assert len(rates(good, "ids")) == 4
    assert all(rate.met for rate in rates(good, "ids"))


def test_what_was_told_with_the_cause_is_no_wrong_claim():
    both = rates([trial(attributed=False, together=True, named=True)], "logits")
    assert {rate.what: rate.k for rate in both} == {
        "detected": 1,
        "cause first, one defect": 0,
        "cause first or told with it, one defect": 1,
        "another cause claimed": 0,
    }


def test_the_table_says_on_what_and_what_was_set_aside():
    trials = [trial(), trial(hidden="moves no logit"), trial(hidden="moves no logit")]
    assert table(trials, "logits").title == "1 trials on logits alone, 2 set aside (2 moves no logit)"
    assert table([trial()]).title == "1 trials, 0 set aside (none)"


def test_a_report_is_valid_and_written_whole(tmp_path):
    trials = [trial(), trial(name="tensor_zero: blk.0.attn_q.weight"), trial(name="rms_eps=0.001"), trial("clean")]
    made = report(trials, first_seed=1000, seconds=1.5)
    assert [e["name"] for e in made["entries"]] == ["activation=silu", "tensor_zero", "rms_eps"]
    path = tmp_path / "new" / "drift.json"
    write(made, path)
    assert json.loads(path.read_text()) == made
    assert not list(path.parent.glob("*.part"))
    for wrong in ({"extra": 1}, {"evidence": "words"}):
        with pytest.raises(jsonschema.ValidationError):
            check({**made, **wrong})
    assert table(trials).row_count == 4
