"""An engine that computes one thing for those who watch and another for its users is found before all else."""

from __future__ import annotations

import json
from dataclasses import replace

import liars
import numpy as np
import pytest
from liars import Liar

from crossval.engine import EngineRunner
from crossval.environment import now
from crossval.run import Run
from crossval.verdict import exit_code
from crossval.watched import _other_bits
from receipts import digest_of
from receipts.lanes import UNWATCHED
from receipts.verify import verify
from reference.runner import Observation, ReferenceUnavailableError, Request


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr("crossval.run.N_GREEDY", 2)


def two_faced(change, singles=False):
    """An engine whose logits on given ids are changed when nobody watches, perhaps in single steps alone."""

    class TwoFaced(EngineRunner):
        def run(self, request: Request) -> Observation:
            seen = super().run(request)
            if request.taps or request.lock or request.n_greedy or (singles and request.n_batch != 1):
                return seen
            return replace(seen, logits=change(seen.logits))

    return TwoFaced


def one_bit(logits):
    logits = logits.copy()
    logits[3, 7] = np.nextafter(logits[3, 7], np.float32(np.inf))
    return logits


CHANGES = {
    "everywhere": lambda logits: np.roll(logits, 1, axis=1),
    "one bit": one_bit,
    "nan": lambda logits: np.where(np.arange(len(logits))[:, None] == 3, np.float32(np.nan), logits),
}


def no_taps(request: Request, seen: Observation) -> Observation:
    if request.taps:
        raise ReferenceUnavailableError("it shows no intermediates")
    return seen


@pytest.fixture
def climbed(tmp_path, monkeypatch):
    def climb(change, *, singles=False, reference=Liar):
        monkeypatch.setattr("crossval.run.EngineRunner", two_faced(change, singles))
        run = Run(liars.options(tmp_path), liars.quiet)
        lane = run.climb(liars.plan(reference))
        return lane, run.receipt(now(), 5.0), run.options.receipt

    return climb


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("singles", [False, True])
def test_an_engine_that_computes_otherwise_unwatched_is_found_and_blamed(climbed, name, singles):
    lane, receipt, path = climbed(CHANGES[name], singles=singles)
    assert liars.first_fault(lane) == ("operations", "fail")
    rung = lane.rung("operations")
    assert rung.metric == UNWATCHED
    assert 0 < rung.measured <= rung.compared
    assert ("one token at a time, position" if singles else "first in one, position") in rung.why
    assert (lane.blame, lane.located, lane.cause, lane.votes) == ("engine", None, None, ())
    report = verify(path)
    assert report.valid, report.failures
    assert exit_code(receipt) == 1


def test_it_is_found_though_the_reference_shows_nothing(climbed):
    lane, _, path = climbed(CHANGES["one bit"], reference=lambda: Liar(change=no_taps))
    assert (liars.first_fault(lane), lane.blame) == (("operations", "fail"), "engine")
    assert verify(path).valid


def test_an_honest_engine_is_itself(climbed):
    lane, *_ = climbed(lambda logits: logits)
    assert lane.outcome == "pass"


def test_a_receipt_cannot_clear_such_an_engine(climbed):
    lane, receipt, path = climbed(CHANGES["one bit"])
    for side in (None, "reference"):
        data = replace(receipt, lanes=(replace(lane, blame=side),)).to_dict()
        forged = path.with_name("forged.json")
        forged.write_text(json.dumps(data | {"digest": digest_of(data)}), "utf-8")
        assert "lanes.blame" in {check.name for check in verify(forged, gate=False).failures}


def test_rows_of_other_bits():
    a = np.zeros((4, 3), np.float32)
    b = a.copy()
    b[1, 2], b[2, 0] = -0.0, 1e-45
    a[3, 1], b[3, 1] = np.nan, -np.float32(np.nan)
    assert _other_bits(a, b).tolist() == [False, True, True, False]
