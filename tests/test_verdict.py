"""Exit codes and claims follow from lanes and trials, and from nothing else."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from crossval.plan import ALL_RUNGS, LLAMA_CPP_SILU
from crossval.verdict import claims, deviation, exit_code
from receipts.record import Cause, KnownDeviation, Lane, Located, Rung

PASSED = tuple(Rung(name=name, outcome="pass", why="w", compared=1) for name in ALL_RUNGS)
FAILED = (*PASSED[:3], Rung(name="operations", outcome="fail", why="w", compared=1), *PASSED[4:])


def lane(outcome="pass", *, required=True, deviation=""):
    known = KnownDeviation(name="d", reason="r", status=deviation) if deviation else None
    return Lane(
        name=f"lane {outcome} {required} {deviation}",
        model="m",
        reference="r",
        outcome=outcome,
        rungs=PASSED,
        required=required,
        climbed="quality",
        known_deviation=known,
        cause=Cause(name="activation=silu", explained=1.0) if deviation == "proven" else None,
    )


def code(*lanes, accuracy=True, equal=True):
    receipt = SimpleNamespace(
        lanes=lanes, accuracy=[SimpleNamespace(passed=accuracy)], determinism=[SimpleNamespace(equal=equal)]
    )
    return exit_code(receipt)


@pytest.mark.parametrize(
    ("lanes", "expected"),
    [
        ((lane(),), 0),
        ((lane(), lane("fail", deviation="proven")), 0),
        ((lane("fail", deviation="proven"),), 0),
        ((lane(), lane("unsupported", required=False)), 0),
        ((lane(), lane("fail", required=False)), 0),
        ((), 4),
        ((lane(required=False),), 4),
        ((lane(), lane("error")), 4),
        ((lane(), lane("unsupported")), 4),
        ((lane(), lane("inconclusive")), 4),
        ((lane(), lane("fail")), 1),
        ((lane("error"), lane("fail")), 1),
        ((lane(deviation="stale"),), 1),
        ((lane("fail", deviation="stale"),), 1),
        ((lane(), lane(required=False, deviation="stale")), 1),
    ],
)
def test_exit_codes(lanes, expected):
    assert code(*lanes) == expected


def test_lanes_that_pass_do_not_hide_a_wrong_kernel_or_a_changing_result():
    assert code(lane(), accuracy=False) == 1
    assert code(lane(), equal=False) == 1


def test_claims_are_of_what_passed_and_say_what_did_not():
    made = claims([lane(), lane("fail"), lane("fail", deviation="proven"), lane("pass", required=False)])
    assert [s.split(":")[0] for s in made.supports] == ["lane pass True ", "lane fail True proven"]
    assert "deviates as declared (activation=silu)" in made.supports[1]
    assert "lane fail True : fail" in made.does_not
    assert len(made.does_not) == 4


LOCATED = Located(tap="ffn_act", layer=0, max_abs_err=1.0, max_abs_ref=1.0, limit=1e-6)
CAUSE = Cause(name="activation=silu", explained=1.0)
ROWS = [{"tap": "ffn_act", "outcome": "fail"}, {"tap": "q", "outcome": "pass"}]


def status(*, rows=ROWS, located=LOCATED, blame="reference", cause=CAUSE, rungs=FAILED):
    found = deviation(LLAMA_CPP_SILU, ALL_RUNGS, rows, located, blame, cause, rungs)
    return found and found.status


def test_a_deviation_is_proven_by_place_blame_and_cause_together():
    assert status() == "proven"
    assert status(located=None) == "stale"
    assert status(located=replace(LOCATED, tap="q_rope")) == "stale"
    assert status(located=replace(LOCATED, layer=1)) == "stale"
    assert status(blame="engine") == "stale"
    assert status(blame=None) == "stale"
    assert status(cause=None) == "stale"
    assert status(cause=Cause(name="activation=gelu", explained=1.0)) == "stale"
    assert status(cause=Cause(name="activation=silu", explained=0.97)) == "stale"
    assert status(rows=[*ROWS, {"tap": "ffn_down", "outcome": "fail"}]) == "stale"
    assert status(rows=[], located=None, blame=None, cause=None, rungs=PASSED) == "stale"


def test_what_was_not_declared_or_could_not_be_tried_is_no_deviation():
    assert deviation(None, ALL_RUNGS, ROWS, LOCATED, "reference", CAUSE, FAILED) is None
    died = (*PASSED[:3], Rung(name="operations", outcome="error", why="w"))
    assert status(rungs=died) is None
