"""Honest engines whose rounding fell otherwise are not called wrong, and wrong ones still are."""

from __future__ import annotations

from dataclasses import replace

import liars
import numpy as np
import pytest

from bitnet.synthetic import Shape, make
from crossval import plan, settle
from crossval.case import Prompt
from crossval.environment import now
from crossval.noise import jittered
from crossval.run import Run
from receipts.running import WINDOW
from receipts.verify import verify
from reference.runner import Observation, Request

#: An honest computation flips a rounding here that the perturbations which measure the noise miss.
SHAPE = Shape(n_layer=3, n_embd=256, n_ff=512, n_head=4, n_head_kv=2, n_vocab=512, n_ctx=512)
WITHOUT_OPERATIONS = tuple(name for name in plan.ALL_RUNGS if name != "operations")
PROMPTS = (
    Prompt(name="short", text="a sea"),
    Prompt(name="long", text="One autumn, when the first geese flew south, a small boat came home."),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make(tmp_path_factory.mktemp("settle") / "flips.gguf", SHAPE, seed=4)


@pytest.fixture(autouse=True)
def _without_causes(monkeypatch):
    monkeypatch.setattr("crossval.run.cause_of", lambda *_, **__: None)  # not what is tested, and slow


def honest(model, *, seed=102, change=None):
    other = liars.Liar(model, change=change)
    other.oracle = jittered(other.oracle, seed)
    return other


def climb(model, reference, folder, *, prompts=PROMPTS, **changes):
    made = liars.plan(lambda: reference, model=model, **changes)
    run = Run(liars.options(folder), liars.quiet)
    return run, run.climb(replace(made, subject=replace(made.subject, prompts=prompts)))


def test_a_rounding_that_the_noise_missed_is_found_by_further_computations(model, tmp_path, monkeypatch):
    run, lane = climb(model, honest(model), tmp_path)
    assert lane.outcome == "pass"
    assert lane.rung("logits").limit > 1e-3
    run.receipt(now(), 1.0)
    assert verify(run.options.receipt, gate=False).failures == ()
    monkeypatch.setattr(settle, "FURTHER", ())
    _, without = climb(model, honest(model), tmp_path)
    assert liars.first_fault(without) == ("logits", "fail")


def drifting(request: Request, seen: Observation) -> Observation:
    """Off by a hundredth in the second half of a long prompt: less than a flipped rounding, at every position."""
    if len(seen.logits) <= WINDOW:
        return seen
    logits, taps = seen.logits.copy(), dict(seen.taps)
    logits[len(logits) // 2 :] *= np.float32(1.01)
    return replace(seen, logits=logits, taps={key: value for key, value in taps.items() if key[0] != "result_output"})


def test_what_no_honest_computation_reproduces_stays_wrong(model, tmp_path):
    _, lane = climb(model, honest(model, change=drifting), tmp_path)
    assert liars.first_fault(lane) == ("logits", "fail")


def test_a_drift_in_fewer_than_half_of_the_positions_is_seen(tmp_path):
    prompts = (*PROMPTS, Prompt(name="longer", text=f"{PROMPTS[1].text} {PROMPTS[1].text}"))
    _, lane = climb(liars.MODEL, liars.Liar(change=drifting), tmp_path, prompts=prompts)
    rung = lane.rung("logits")
    assert rung.outcome == "fail"
    assert rung.metric.startswith("running median")
    assert rung.measured == pytest.approx(0.01, rel=0.01)


@pytest.mark.parametrize("change", [liars.nan, liars.scaled_logits_only, liars.one_row(3, 1.2)])
def test_more_than_flipped_roundings_move_is_not_put_to_further_computations(tmp_path, monkeypatch, change):
    def hidden(request, seen):
        return liars.without_taps(request, change(request, seen))

    monkeypatch.setattr(settle, "jittered", lambda *_: pytest.fail("no noise excuses this"))
    _, lane = climb(liars.MODEL, liars.Liar(change=hidden), tmp_path, required_rungs=WITHOUT_OPERATIONS)
    assert lane.outcome == "fail"


def test_a_large_model_is_not_evaluated_again(model, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "LARGE_MODEL", 1)
    monkeypatch.setattr(settle, "jittered", lambda *_: pytest.fail("each takes minutes"))
    _, lane = climb(model, honest(model, change=drifting), tmp_path)
    assert lane.outcome == "fail"
