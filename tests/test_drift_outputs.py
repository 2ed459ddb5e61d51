"""The study on logits and on ids: a defect is named from them, an honest engine is no alarm, nothing is invented."""

from __future__ import annotations

import golden_models
import numpy as np
import pytest

from bitnet.synthetic import make
from crossval import drift_outputs
from crossval.catalogue import CATALOGUE
from crossval.drift import SHAPES, Subject, plan, study
from crossval.drift_outputs import JUDGES, by_ids, by_logits
from crossval.drift_table import rates, report


@pytest.fixture(scope="module")
def subject():
    return Subject("b158_a", golden_models.model("b158_a"), ())


def entry(name):
    return next(i for i, e in enumerate(CATALOGUE) if e.name == name)


def without_time(trial):
    return {k: v for k, v in trial.to_dict().items() if k != "seconds"}


def test_a_defect_is_named_from_logits(subject):
    trial = by_logits(subject, "single", 1, entry("activation=silu"))
    assert (trial.detected, trial.attributed, trial.named, trial.located) == (True, True, True, False)
    assert trial.causes == trial.defects == ("activation=silu",)
    assert trial.explained > 0.9


def test_the_mutants_are_those_of_the_other_study(subject, monkeypatch):
    monkeypatch.setattr("crossval.drift.BUDGET", 0.0)
    made = subject.make("single", 1, entry("tensor_scaled"))
    assert made.names == subject.trial("single", 1, entry("tensor_scaled")).defects
    assert made.request == subject.make("single", 1, entry("tensor_scaled")).request


def test_a_defect_fits_its_ids(subject):
    trial = by_ids(subject, "single", 1, entry("activation=silu"))
    assert (trial.detected, trial.together) == (True, True)
    assert "activation=silu" in trial.causes
    assert without_time(by_ids(subject, "single", 1, entry("activation=silu"))) == without_time(trial)


@pytest.mark.parametrize("judge", [by_logits, by_ids])
@pytest.mark.parametrize("name", ["activation=relu2", "head=tied"])
def test_what_moves_no_logit_is_set_aside(subject, judge, name):
    assert judge(subject, "single", 1, entry(name)).hidden == "moves no logit"


@pytest.mark.parametrize("judge", [by_logits, by_ids])
def test_an_honest_engine_is_no_alarm(subject, judge):
    for seed in range(2):
        trial = judge(subject, "clean", seed, 0)
        assert (trial.detected, trial.hidden, trial.causes) == (False, "", ())


def test_an_honest_engine_is_not_even_searched(subject, monkeypatch):
    def never(*_, **__):
        raise AssertionError("there is nothing to explain")

    monkeypatch.setattr(drift_outputs, "infer", never)
    assert not by_logits(subject, "clean", 5, 0).detected


def test_a_cause_that_is_another_is_not_counted_as_the_defect(subject, monkeypatch):
    """A search that names SiLU whatever it sees: a study that believed it would be worth nothing."""
    honest = drift_outputs.infer
    seen = by_logits(subject, "single", 1, entry("activation=silu"))
    made = subject.make("single", 1, entry("activation=silu"))
    logits = made.mutant.run(made.request).logits
    answer = honest(
        drift_outputs.EndToEnd(
            subject.oracle,
            [drift_outputs.Evaluation(ids=made.request.ids, logits=logits, n_batch=made.request.n_batch)],
        )
    )
    monkeypatch.setattr(drift_outputs, "infer", lambda *_, **__: answer)
    other = by_logits(subject, "single", 1, entry("head_grouping=stride"))
    assert seen.attributed
    assert (other.detected, other.causes, other.attributed, other.named) == (True, ("activation=silu",), False, True)
    [claimed] = [rate for rate in rates([other], "logits") if rate.what == "another cause claimed"]
    assert (claimed.k, claimed.met) == (1, False)


@pytest.mark.slow
def test_a_sample_on_logits_keeps_every_promise(tmp_path):
    """`nox -s drift -- --evidence logits` is the whole of it; here one small model."""
    model = Subject("small", make(tmp_path / "small.gguf", SHAPES["small"], seed=7), ())
    trials = study([model], list(plan(1, 2, 12, 71_000)), sample=30, seed=71_000, judge=JUDGES["logits"])
    missed = [
        trial.to_dict() for trial in trials if not trial.hidden and trial.kind != "clean" and not trial.attributed
    ]
    found = {rate.what: rate for rate in rates(trials, "logits")}
    for what in ("detected", "cause first, one defect", "another cause claimed", "false alarms"):
        assert found[what].met, (found, missed)
    assert report(trials, first_seed=71_000, seconds=1.0, evidence="logits")["evidence"] == "logits"


def test_honest_logits_are_those_of_a_twin(subject):
    """The study's honest engine shares no rounding with the contract: or its false alarms would prove nothing."""
    made = subject.make("clean", 1)
    ours = subject.oracle.run(made.request).logits
    assert not np.array_equal(made.mutant.run(made.request).logits, ours)


def evaluation(made, logits):
    return drift_outputs.Evaluation(ids=made.request.ids, logits=logits, n_batch=made.request.n_batch)


def test_one_rounding_that_flips_early_is_no_defect(monkeypatch):
    """Three perturbations miss it, and the engine would be called wrong; a further one reproduces it."""
    path = golden_models.FOLDER.parent / "models" / "tiny-llama.i2_s.gguf"
    trained = Subject("tiny-llama", path, ("Once upon a time there was a little girl who lived in a small house",))
    for seed in range(40):
        made = trained.make("clean", seed)
        seen = drift_outputs.EndToEnd(trained.oracle, [evaluation(made, made.mutant.run(made.request).logits)])
        with monkeypatch.context() as patched:
            patched.setattr("crossval.end_to_end.FURTHER", ())
            few = seen.honest
        del seen.__dict__["honest"]
        assert seen.honest
        if not few:
            return
    raise AssertionError("no flip was missed in 40 honest engines")


def test_no_perturbation_excuses_a_defect(subject):
    """Not even a small one: what it moves is in every position, and not behind one flip alone."""
    for name, seed in (("attention_scale", 3), ("rms_eps", 2), ("norm_type=f16", 1), ("numerics.head=bf16", 1)):
        made = subject.make("single", seed, next(i for i, e in enumerate(CATALOGUE) if e.name.startswith(name)))
        if made.mutant is not None:
            logits = made.mutant.run(made.request).logits
            assert not drift_outputs.EndToEnd(subject.oracle, [evaluation(made, logits)]).honest, made.names
