"""What a person is told of a lane: the rung that stopped it, and not one that the reference need not offer."""

from __future__ import annotations

import liars
import pytest

from crossval.answer import lane_fields, sentence, stopped_at
from crossval.plan import ORACLE_RUNGS


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr("crossval.run.N_GREEDY", 2)
    monkeypatch.setattr("crossval.run.cause_of", lambda *_, **__: None)


def against_the_oracle(tmp_path, semantics=None):
    reference = liars.Oracle(str(liars.MODEL), semantics=semantics)
    return liars.climb(reference, tmp_path, as_default=True, required_rungs=ORACLE_RUNGS)


def test_a_lane_that_passes_holds_on_every_rung(tmp_path):
    lane = against_the_oracle(tmp_path)
    assert lane.rung("tokens").outcome == "unsupported"
    assert stopped_at(lane) is None
    assert sentence(lane) == "lane liar: every rung holds."
    assert lane_fields(lane)["stopped_at"] is None


def test_a_rung_that_is_stepped_over_is_not_what_stops_a_lane(tmp_path):
    lane = against_the_oracle(tmp_path, liars.Semantics(activation="silu"))
    assert lane_fields(lane)["stopped_at"] == "operations"
    assert sentence(lane).startswith("lane liar, rung operations, blk.0 ffn_act, ")


def test_one_that_is_required_and_not_offered_does(tmp_path):
    lane = liars.climb(liars.Liar(change=liars.without_taps), tmp_path)
    assert lane_fields(lane)["stopped_at"] == "operations"
    assert "offers no intermediates" in sentence(lane)


def test_who_is_odd_is_told_where_no_operation_is_wrong(tmp_path):
    lane = liars.climb(liars.DoublesAScale(), tmp_path)
    assert sentence(lane).startswith("lane liar, rung weights: fail; blk.1.ffn_gate.weight row")
    assert sentence(lane).endswith("; 2 of 3 engines agree with you.")
