"""The study: the same seed makes the same trial, defects that move nothing are set aside, honest engines pass."""

from __future__ import annotations

from pathlib import Path

import golden_models
import pytest

from crossval.catalogue import CATALOGUE
from crossval.drift import SHAPES, Subject, Trial, plan, study, subjects
from crossval.drift_table import rates

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="module")
def subject():
    return Subject("b158_a", golden_models.model("b158_a"), ())


def entry(name):
    return next(i for i, e in enumerate(CATALOGUE) if e.name == name)


def without_time(trial):
    return {k: v for k, v in trial.to_dict().items() if k != "seconds"}


def test_a_defect_is_detected_located_and_named(subject):
    trial = subject.trial("single", 1, entry("activation=silu"))
    assert (trial.detected, trial.located, trial.attributed) == (True, True, True)
    assert trial.expected == trial.found == "ffn_act of layer 0"
    assert trial.causes == trial.defects == ("activation=silu",)
    assert without_time(subject.trial("single", 1, entry("activation=silu"))) == without_time(trial)


@pytest.mark.parametrize("name", ["activation=relu2", "head=tied", "activation_rounding=away"])
def test_a_defect_that_moves_nothing_is_set_aside(subject, name):
    assert subject.trial("single", 1, entry(name)).hidden == "moves nothing"


def test_an_honest_engine_is_no_alarm(subject):
    for seed in range(3):
        trial = subject.trial("clean", seed)
        assert (trial.detected, trial.hidden, trial.defects) == (False, "", ())


def test_a_sample_is_drawn_by_its_seed(subject):
    trials = list(plan(1, 2, 3, 5))
    assert len(trials) == len(CATALOGUE) + 5
    clean = [t for t in trials if t[0] == "clean"]
    seen = []
    one = study([subject], clean, sample=2, seed=1, done=lambda t, i, n: seen.append((i, n)))
    two = study([subject], clean, sample=2, seed=1)
    assert [without_time(t) for t in one] == [without_time(t) for t in two]
    assert seen == [(1, 2), (2, 2)]


def test_three_sizes_three_graphs():
    assert {shape.arch for shape in SHAPES.values()} == {"bitnet-b1.58", "bitnet", "llama"}


def test_located_needs_detection():
    trial = Trial(model="m", seed=0, kind="single", defects=("x",), expected="", found="")
    assert not trial.located


@pytest.mark.slow
def test_a_sample_of_the_study_keeps_every_promise(tmp_path):
    """`nox -s drift` is the whole of it."""
    trials = study(subjects(FIXTURES, tmp_path), list(plan(1, 8, 24, 70_000)), sample=120, seed=70_000)
    missed = [
        trial.to_dict() for trial in trials if not trial.hidden and trial.kind != "clean" and not trial.attributed
    ]
    found = {rate.what: rate for rate in rates(trials)}
    assert len(found) == 5
    assert all(rate.met for rate in found.values()), (found, missed)
