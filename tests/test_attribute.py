"""Causes: each known defect is named by the operation it spoils, and what fits nothing is called unexplained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import golden_models
import liars
import numpy as np
import pytest
from liars import Liar

from crossval.attribute import HYPOTHESES, NAMED_FROM, attribute, explained
from crossval.engine import EngineRunner
from crossval.plan import LLAMA_CPP_SILU
from crossval.run import Run
from crossval.verdict import exit_code
from reference.oracle import Oracle
from reference.runner import Request
from reference.semantics import Semantics

IDS = (1, 45, 300, 7, 7, 19, 254, 0)
#: Hypothesis → the operation at which its engine is first wrong.
FIRST_WRONG = {
    "activation=silu": ("ffn_act", 0),
    "activation=gelu": ("ffn_act", 0),
    "activation=relu": ("ffn_act", 0),
    "rope_style=interleaved": ("q_rope", 0),
    "rope_theta/50": ("q_rope", 0),
    "rope_theta*50": ("q_rope", 0),
    "position+1": ("q_rope", 0),
    "norm=layernorm": ("attn_norm", 0),
    "sub_norms=off": ("attn_out", 0),
    "activation_quantised=no": ("q", 0),
    "activation_rounding=truncate": ("q", 0),
    "activation_scale=tensor": ("q", 0),
    "weight_scale=divide": ("q", 0),
    "weight_scale=drop": ("q", 0),
    "reternarised": ("q", 0),
    "unpack_order=sequential": ("q", 0),
    "unpack_order=interleaved_64": ("q", 0),
    "head_grouping=stride": ("kqv_out", 0),
    "attention_scale*1.05": ("kqv_out", 0),
    "causal=no": ("kqv_out", 0),
}


def cause_of(name):
    [hypothesis] = [h for h in HYPOTHESES if h.name == name]
    path = golden_models.model("b158_a")
    taps = Oracle(path, semantics=Semantics(**hypothesis.changes)).run(Request(ids=IDS, taps=True)).taps
    locked = Request(ids=IDS, taps=True, lock=taps)
    key = FIRST_WRONG[name]
    return hypothesis, attribute(Path(path), Oracle(path).numerics, locked, key, taps[key])


@pytest.mark.parametrize("name", ["activation=silu", "rope_style=interleaved", "activation_rounding=truncate"])
def test_a_defect_is_named(name):
    hypothesis, cause = cause_of(name)
    assert (cause.name, cause.explanation) == (name, hypothesis.explanation)
    assert cause.explained > 0.999999
    assert cause.runner_up_explained < cause.explained
    assert cause.runner_up != name


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(FIRST_WRONG)))
def test_every_defect_is_named(name):
    _, cause = cause_of(name)
    assert cause.name == name
    assert cause.runner_up_explained < cause.explained


def test_hypotheses_have_names_of_their_own_and_change_something():
    assert len({h.name for h in HYPOTHESES}) == len(HYPOTHESES)
    assert all(Semantics(**h.changes).changes() for h in HYPOTHESES)
    assert set(FIRST_WRONG) <= {h.name for h in HYPOTHESES}


def test_what_fits_nothing_is_unexplained():
    path = golden_models.model("b158_a")
    taps = Oracle(path).run(Request(ids=IDS, taps=True)).taps
    odd = taps["ffn_up", 1] + np.random.default_rng(1).standard_normal(taps["ffn_up", 1].shape).astype(np.float32)
    cause = attribute(Path(path), Oracle(path).numerics, Request(ids=IDS, taps=True, lock=taps), ("ffn_up", 1), odd)
    assert (cause.name, cause.explained) == ("", 0.0)
    assert cause.explanation.startswith("unexplained: the best of ")


def test_nan_is_explained_by_nothing():
    path = golden_models.model("b158_a")
    taps = Oracle(path).run(Request(ids=IDS, taps=True)).taps
    odd = np.full_like(taps["q", 0], np.nan)
    cause = attribute(Path(path), Oracle(path).numerics, Request(ids=IDS, taps=True, lock=taps), ("q", 0), odd)
    assert cause.name == ""
    assert "not a number" in cause.explanation


def test_the_share_of_a_difference():
    contract, odd = np.zeros((1, 2), np.float32), np.array([[2, 0]], np.float32)
    assert explained(odd, contract, odd) == 1.0
    assert explained(odd, contract, contract) == 0.0
    assert explained(odd, contract, odd / 2) == 0.75
    assert explained(odd, contract, -odd) == 0.0
    assert explained(contract, contract, contract) == 0.0
    assert explained(odd, contract, odd * np.float32(np.nan)) == 0.0
    assert NAMED_FROM > 0.75


def test_the_defect_of_the_engine_is_found_in_the_engines_values(tmp_path, monkeypatch):
    class Broken(EngineRunner):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.model.network.config = replace(self.model.network.config, activation="silu")

    monkeypatch.setattr("crossval.run.EngineRunner", Broken)
    lane = liars.climb(Liar(), tmp_path)
    assert (lane.blame, lane.cause.name) == ("engine", "activation=silu")


# ---- declared deviations -------------------------------------------------------------------------------------------


def declared(reference, tmp_path):
    run = Run(liars.options(tmp_path), liars.quiet)
    lane = run.climb(liars.plan(lambda: reference, deviation=LLAMA_CPP_SILU))
    return lane, exit_code(run.receipt("2026-01-01T00:00:00.000Z", 1.0))


def test_a_declared_deviation_is_proven(tmp_path):
    lane, code = declared(Liar(semantics=Semantics(activation="silu")), tmp_path)
    assert lane.outcome == "fail"
    assert (lane.blame, lane.cause.name) == ("reference", "activation=silu")
    assert lane.known_deviation.status == "proven"
    assert code == 0


def test_a_declaration_that_is_no_longer_true_fails(tmp_path, monkeypatch):
    monkeypatch.setattr("crossval.run.N_GREEDY", 4)
    lane, code = declared(Liar(), tmp_path)
    assert lane.outcome == "pass"
    assert lane.known_deviation.status == "stale"
    assert code == 1


def second_fault(_, seen):
    """Another operation is wrong too, behind the declared one."""
    taps = dict(seen.taps)
    for key in [key for key in taps if key == ("ffn_down", 2)]:
        taps[key] = taps[key] * np.float32(2)
    return replace(seen, taps=taps)


@pytest.mark.parametrize(
    "reference",
    [
        lambda: Liar(semantics=Semantics(activation="gelu")),
        lambda: Liar(semantics=Semantics(activation="silu", rope_style="interleaved")),
        lambda: Liar(semantics=Semantics(activation="silu"), change=second_fault),
    ],
    ids=["another activation", "a fault before it", "a fault behind it"],
)
def test_a_declaration_excuses_nothing_else(tmp_path, reference):
    lane, code = declared(reference(), tmp_path)
    assert lane.outcome == "fail"
    assert lane.known_deviation.status == "stale"
    assert code == 1


def test_a_declaration_that_could_not_be_tried_is_neither(tmp_path):
    lane, code = declared(liars.Dies(requests=0), tmp_path)
    assert (lane.outcome, lane.known_deviation, code) == ("error", None, 4)
