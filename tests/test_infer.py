"""Causes from logits alone: each known defect is named, what cannot be told apart is told, the place is not claimed."""

from __future__ import annotations

from dataclasses import replace

import golden_models
import liars
import numpy as np
import pytest
from liars import Liar

from crossval.answer import lane_fields, sentence
from crossval.catalogue import BY_NAME, hypothesis
from crossval.end_to_end import EndToEnd, Evaluation
from crossval.engine import EngineRunner
from crossval.fits import variant_of
from crossval.infer import infer, inferred
from crossval.mutants import Mutant, same_cause
from crossval.plan import ALL_RUNGS
from crossval.run import run
from receipts.read import read
from receipts.verify import verify
from reference.oracle import Oracle
from reference.runner import Request
from reference.semantics import Semantics, WeightChange
from reports.sentences import sentence as reported

IDS = (1, 45, 300, 7, 7, 19, 254, 0, 88, 410, 3, 77)
PATH = golden_models.model("b158_a")
ORACLE = Oracle(PATH)
NO_OPERATIONS = tuple(rung for rung in ALL_RUNGS if rung != "operations")


def entry(name, value=None):
    return hypothesis(BY_NAME[name], value, name="" if np.ndim(value) == 0 else name)


def evaluated(*hypotheses, seed=1, change=lambda logits: logits, **options):
    """The logits of an engine with these defects, in float32 arithmetic of its own."""
    logits = Mutant.of(variant_of(ORACLE, *hypotheses), seed).run(Request(ids=IDS)).logits
    return Evaluation(ids=IDS, logits=change(logits), **options)


def seen(*hypotheses, **options):
    return EndToEnd(ORACLE, [evaluated(*hypotheses, **options)])


@pytest.mark.parametrize(
    "name",
    [
        "activation=silu",
        "skipped_norm=ffn_norm",
        "weight_scale=drop",
        "head_grouping=stride",
    ],
)
def test_a_defect_is_named(name):
    found = infer(seen(entry(name)))
    assert found.best.name == name
    assert found.cause.name == name
    assert found.cause.explanation.startswith(BY_NAME[name].explanation)
    assert found.cause.runner_up_explained < found.cause.explained
    assert found.explained > 0.95
    assert found.margin > 0.3
    assert found.cause.evidence == "logits"
    assert set(found.cause.touches) == BY_NAME[name].taps
    assert "no operation was observed" in found.cause.caveat


@pytest.mark.slow
def test_a_defect_that_makes_an_engine_noisy_comes_first_and_is_not_claimed():
    """The largest activation of each token is an integer, which truncation takes for one less at random."""
    found = infer(seen(entry("activation_rounding=truncate")))
    assert found.best.name == "activation_rounding=truncate"
    assert not found.named
    assert "the best of" in found.cause.explanation
    assert "activation_rounding=truncate" in found.cause.explanation


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("attention_scale_factor", 1.07, "attention_scale*1.07"),
        ("logit_scale", 1.5, "logit_scale=1.5"),
        ("window", 4, "window=4"),
        ("batch_rows", 5, "batch_rows=5"),
    ],
)
def test_a_number_is_searched_for(name, value, shown):
    found = infer(seen(entry(name, value)))
    assert found.best.name == shown
    assert found.named


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["scaled", "zero", "other"])
def test_a_wrong_tensor_is_named(kind):
    """Of the output projection: the scale of `attn_v` is divided out by the sub-norm, and no logit shows it."""
    tensor = "blk.1.attn_output.weight"
    values = {"scaled": {"factor": 2.0}, "other": {"other": "blk.2.attn_output.weight"}}.get(kind, {})
    true = entry(f"tensor_{kind}", (WeightChange(tensor=tensor, kind=kind, **values),))
    found = infer(seen(true))
    assert same_cause(found.best.hypotheses[0], true), found.best.name
    assert tensor in found.cause.name


@pytest.mark.slow
def test_two_stacked_defects_are_both_named():
    names = ("activation=silu", "rope_style=interleaved")
    found = infer(seen(*(entry(n) for n in names)))
    assert {h.name for h in found.best.hypotheses} == set(names)
    assert found.named
    assert "ffn_act" in found.cause.touches
    assert "q_rope" in found.cause.touches


@pytest.mark.slow
def test_what_logits_cannot_tell_apart_is_told_together():
    """Scores of keys grow alike whether queries or keys are scaled."""
    true = entry("tensor_negated", (WeightChange(tensor="blk.1.attn_q.weight", kind="negated"),))
    found = infer(seen(true))
    names = {found.best.name, *found.equivalent}
    assert {"tensor_negated: blk.1.attn_q.weight", "tensor_negated: blk.1.attn_k.weight"} <= names
    assert "with the same effect on logits" in found.cause.explanation


def test_log_probabilities_do():
    def normalised(logits):
        return (logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True))).astype(np.float32)

    found = infer(seen(entry("activation=silu"), change=normalised, log_probabilities=True))
    assert found.best.name == "activation=silu"
    assert found.named


def test_an_honest_engine_has_nothing_to_explain():
    found = infer(seen())
    assert (found.decades, found.best, found.named) == (0.0, None, False)
    assert inferred(ORACLE, [evaluated()]) is None


def test_what_fits_nothing_is_unexplained_and_shows_its_evidence():
    noise = np.random.default_rng(1).standard_normal((len(IDS), 512)).astype(np.float32)
    cause = inferred(ORACLE, [evaluated(change=lambda x: x + noise * np.abs(x).mean())], budget=1.0)
    assert (cause.name, cause.explained, cause.touches) == ("", 0.0, ())
    assert cause.explanation.startswith("unexplained: ")
    assert "the logits of 12 of 12 positions differ" in cause.explanation
    assert cause.caveat == "inferred from logits alone: no operation was observed"


def test_nan_is_explained_by_nothing():
    cause = inferred(ORACLE, [evaluated(change=lambda x: np.full_like(x, np.nan))])
    assert cause.name == ""
    assert "not numbers" in cause.explanation


def test_a_budget_ends_the_search_and_is_told():
    told = []
    found = infer(seen(entry("activation=silu")), budget=0.0, progress=lambda *said: told.append(said))
    assert not found.complete
    assert not found.named
    assert "time ended" in found.evidence
    infer(seen(entry("activation=silu")), progress=lambda *said: told.append(said))
    assert told[-1][0] == "single hypotheses"


# ---- lanes ---------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr("crossval.run.N_GREEDY", 4)


def test_a_lane_without_operations_names_silu_from_logits(tmp_path):
    reference = Liar(semantics=Semantics(activation="silu"), change=liars.without_taps)
    reference.shown = Oracle(PATH)
    lane = liars.climb(reference, tmp_path, required_rungs=NO_OPERATIONS)
    assert liars.first_fault(lane) == ("operations", "unsupported")
    assert lane.rung("logits").outcome == "fail"
    assert (lane.located, lane.blame, lane.cause.name) == (None, "reference", "activation=silu")
    assert lane.cause.explained > 0.95
    assert lane.cause.explained - lane.cause.runner_up_explained > 0.3
    assert (lane.cause.evidence, lane.cause.touches) == ("logits", ("ffn_act",))
    for said in (sentence(lane), reported(lane)):
        assert "inferred from logits alone: no operation was observed, the hypothesis touches ffn_act" in said
        assert "computes SiLU in the feed-forward" in said
    assert "2 of 3 engines agree with you" in sentence(lane)
    assert lane_fields(lane)["cause"]["evidence"] == "logits"


def test_the_engine_is_blamed_and_explained_where_it_is_odd(tmp_path, monkeypatch):
    class Broken(EngineRunner):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.model.network.config = replace(self.model.network.config, activation="silu")

    monkeypatch.setattr("crossval.run.EngineRunner", Broken)
    lane = liars.climb(Liar(change=liars.without_taps), tmp_path, required_rungs=NO_OPERATIONS)
    assert (lane.blame, lane.cause.name) == ("engine", "activation=silu")


def test_a_lane_whose_single_steps_alone_are_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr("crossval.cause.BUDGET", 1.0)

    def change(request, seen):
        seen = liars.without_taps(request, seen)
        return liars.wrong_when_single_after(9)(request, seen)

    lane = liars.climb(Liar(change=change), tmp_path, required_rungs=NO_OPERATIONS)
    assert lane.rung("decode").outcome == "fail"
    assert lane.cause.name == ""
    assert lane.cause.explanation.startswith("unexplained: ")


def test_the_receipt_of_such_a_lane_is_valid(tmp_path, monkeypatch):
    reference = Liar(semantics=Semantics(activation="silu"), change=liars.without_taps)
    reference.shown = Oracle(PATH)
    plan = liars.plan(lambda: reference, required_rungs=NO_OPERATIONS)
    monkeypatch.setattr("crossval.run.lanes", lambda *_, **__: [plan])
    options = liars.options(tmp_path, models=(liars.MODEL,))
    [lane] = run(options, liars.quiet, lambda *_: None).lanes
    report = verify(options.receipt)
    assert report.valid, [(check.name, check.path, check.message) for check in report.failures]
    assert read(options.receipt).lanes[0] == lane
    assert (lane.cause.evidence, lane.votes[0].rung, lane.votes[0].odd) == ("logits", "logits", lane.reference)
