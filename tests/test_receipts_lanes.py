"""How far a lane climbs, how it ends, and what the gate makes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.receipts import sample
from receipts.lanes import OUTCOMES, RUNGS, KnownDeviation, Lane, Rung, climb, gate_reason, lane_outcome


def ladder(*outcomes):
    return tuple(Rung(name=name, outcome=outcome, why="") for name, outcome in zip(RUNGS, outcomes, strict=False))


def test_round_trip():
    for lane in sample.full().lanes:
        assert Lane.from_dict(lane.to_dict()) == lane


@pytest.mark.parametrize(
    ("outcomes", "required", "top"),
    [
        (["pass"] * 8, (), "quality"),
        (["pass", "pass", "fail", "pass"], (), "tokens"),
        (["fail", "pass"], (), None),
        (["pass", "inconclusive", "pass"], (), "identity"),
        (["pass", "error", "pass"], (), "identity"),
        (["pass", "unsupported", "pass"], (), "weights"),
        (["pass", "unsupported", "pass"], ("tokens",), "identity"),
        (["unsupported"] * 8, (), None),
        ([], (), None),
    ],
)
def test_a_climb_ends_at_the_first_rung_that_did_not_pass(outcomes, required, top):
    assert climb(ladder(*outcomes), required) == top


@pytest.mark.parametrize(
    ("outcomes", "required", "outcome"),
    [
        (["pass"] * 8, RUNGS, "pass"),
        (["pass", "unsupported"], ("identity",), "pass"),
        (["pass", "inconclusive"], ("identity",), "pass"),
        (["pass", "unsupported"], ("tokens",), "unsupported"),
        (["pass", "inconclusive"], ("tokens",), "inconclusive"),
        (["pass", "fail"], ("identity",), "fail"),
        (["pass", "error"], ("identity",), "error"),
        (["fail", "error"], (), "fail"),
        (["unsupported", "unsupported"], (), "unsupported"),
        (["inconclusive", "inconclusive"], (), "inconclusive"),
        (["pass"], ("quality",), "inconclusive"),
        ([], (), "inconclusive"),
    ],
)
def test_a_lane_ends_as_its_rungs_make_it(outcomes, required, outcome):
    assert lane_outcome(ladder(*outcomes), required) == outcome


@given(st.lists(st.sampled_from(OUTCOMES), max_size=8), st.sets(st.sampled_from(RUNGS)))
def test_a_lane_passes_only_if_something_did_and_nothing_needed_did_not(outcomes, required):
    rungs = ladder(*outcomes)
    if lane_outcome(rungs, required) == "pass":
        assert "pass" in outcomes
        assert not {"fail", "error"} & set(outcomes)
        assert all(rung.outcome == "pass" for rung in rungs if rung.name in required)
        assert required <= {rung.name for rung in rungs}


def test_a_passed_lane_meets_the_gate():
    met, why = gate_reason(sample.minimal().lanes[0])
    assert met
    assert why == "climbed to greedy"


def test_a_required_rung_must_pass():
    lane = sample.minimal().lanes[0]
    met, why = gate_reason(replace(lane, required_rungs=(*lane.required_rungs, "quality")))
    assert not met
    assert "quality: unsupported" in why


def test_an_outcome_alone_does_not_meet_the_gate():
    lane = sample.minimal().lanes[0]
    for outcome in set(OUTCOMES) - {"pass"}:
        assert gate_reason(replace(lane, outcome=outcome))[0] is False


def test_a_proven_deviation_meets_the_gate_and_a_stale_one_does_not():
    lane = sample.minimal().lanes[0]
    for status in ("proven", "stale"):
        declared = KnownDeviation(name="x", reason="y", status=status)
        assert gate_reason(replace(lane, known_deviation=declared))[0] is (status == "proven")


def test_a_deviation_that_could_not_be_tried_is_not_called_stale():
    lane = sample.minimal().lanes[0]
    declared = KnownDeviation(name="x", reason="y", status="stale")
    met, why = gate_reason(replace(lane, known_deviation=declared, outcome="unsupported"))
    assert not met
    assert "ended as unsupported" in why


def test_a_rung_is_found_by_name():
    lane = sample.minimal().lanes[0]
    assert lane.rung("greedy") is lane.rungs[6]
    assert replace(lane, rungs=()).rung("greedy") is None
