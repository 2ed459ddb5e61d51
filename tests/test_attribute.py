"""Causes: each known defect is named by the operation it spoils, and what fits nothing is called unexplained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import golden_models
import liars
import numpy as np
import pytest
from liars import Liar

import reference.matrices
from crossval.attribute import Attribution, attribute, explain
from crossval.catalogue import BY_NAME, hypothesis
from crossval.engine import EngineRunner
from crossval.fits import ids_of, variant_of
from crossval.mutants import Mutant, same_cause
from crossval.plan import LLAMA_CPP_SILU
from crossval.replay import Replay
from crossval.run import Run
from crossval.verdict import exit_code
from reference.oracle import Oracle
from reference.runner import Request
from reference.semantics import Semantics, WeightChange

IDS = (1, 45, 300, 7, 7, 19, 254, 0, 88, 410, 3, 77)
PATH = golden_models.model("b158_a")


def replay_of(*hypotheses, n_batch=None, seed=1):
    """What an engine with these defects captures of itself, in float32 arithmetic of its own."""
    oracle = Oracle(PATH)
    mutant = Mutant.of(variant_of(oracle, *hypotheses), seed)
    taps = mutant.run(Request(ids=IDS, n_batch=n_batch, taps=True)).taps
    return Replay(oracle, IDS, taps, n_batch=n_batch)


def entry(name, value=None):
    return hypothesis(BY_NAME[name], value, name="" if np.ndim(value) == 0 else name)


@pytest.mark.parametrize(
    "name", ["activation=silu", "rope_style=interleaved", "activation_rounding=truncate", "skipped_norm=ffn_norm"]
)
def test_a_defect_is_named(name):
    found = explain(replay_of(entry(name)))
    assert found.best.name == name
    assert found.best.explained == pytest.approx(1.0)
    assert found.cause.name == name
    assert found.cause.explanation == BY_NAME[name].explanation
    assert found.cause.runner_up_explained < found.cause.explained


def test_near_relatives_are_decades_apart():
    """SiLU and GELU share 99 % of the squared difference from squared ReLU; of the decades they share few."""
    found = explain(replay_of(entry("activation=silu")))
    assert found.runner_up.name.startswith("activation=")
    assert found.runner_up.explained < 0.5
    assert found.margin > 0.5


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("rms_eps", 1e-3, "rms_eps=0.001"),
        ("position_offset", 2, "position_offset=2"),
        ("attention_scale_factor", 1.05, "attention_scale*1.05"),
        ("logit_scale", 1.5, "logit_scale=1.5"),
        ("window", 4, "window=4"),
        ("batch_rows", 5, "batch_rows=5"),
        ("token_offset", -1, "token_offset=-1"),
        ("rope_theta_factor", 0.02, "rope_theta=1e+04"),
    ],
)
def test_a_number_is_measured(name, value, shown):
    found = explain(replay_of(entry(name, value)))
    assert found.best.name == shown
    assert found.named


@pytest.mark.parametrize("kind", ["scaled", "zero", "negated", "transposed", "rows", "other"])
def test_a_wrong_tensor_is_named(kind):
    tensor = "blk.1.attn_q.weight"
    rows = len(Oracle(PATH).weights(tensor))
    values = {"scaled": {"factor": 2.0}, "rows": {"order": tuple(range(rows))[::-1]}}.get(kind, {})
    if kind == "other":
        values = {"other": "blk.2.attn_q.weight"}
    true = entry(f"tensor_{kind}", (WeightChange(tensor=tensor, kind=kind, **values),))
    found = explain(replay_of(true))
    assert same_cause(found.best.hypotheses[0], true), found.best.name
    assert tensor in found.cause.name
    assert list(found.wrong) == [("q", 1)]


@pytest.mark.parametrize(
    "names",
    [
        ("activation=silu", "rope_style=interleaved"),
        ("unpack_order=sequential", "weight_scale=drop"),
        ("activation_rounding=truncate", "scale_type=bf16"),
    ],
)
def test_two_stacked_defects_are_both_named(names):
    found = explain(replay_of(*(entry(n) for n in names)))
    assert {h.name for h in found.best.hypotheses} == set(names)
    assert found.named


def test_an_honest_engine_has_nothing_to_explain():
    found = explain(replay_of())
    assert (found.wrong, found.best, found.named) == ({}, None, False)


def test_what_fits_nothing_is_unexplained_and_shows_its_evidence():
    replay = replay_of()
    odd = dict(replay.inputs)
    noise = np.random.default_rng(1).standard_normal(odd["ffn_up", 1].shape).astype(np.float32)
    odd["ffn_up", 1] = odd["ffn_up", 1] + noise
    cause = explain(Replay(replay.oracle, IDS, replay.inputs, odd)).cause
    assert (cause.name, cause.explained) == ("", 0.0)
    assert cause.explanation.startswith("unexplained: ")
    assert "1 operation is wrong, first ffn_up of layer 1, by " in cause.explanation


@pytest.mark.parametrize(
    ("evidence", "said"),
    [
        ((), "unexplained: nothing explains any of it"),
        (("1 operation is wrong",), "unexplained: nothing explains any of it; 1 operation is wrong"),
    ],
)
def test_nothing_explains_any_of_it(evidence, said):
    assert Attribution(wrong={}, best=None, runner_up=None, evidence=evidence).cause.explanation == said


@pytest.mark.parametrize(("keys", "said"), [(1, "1 operation is wrong, first"), (2, "2 operations are wrong, first")])
def test_wrong_operations_are_counted_in_words(keys, said):
    replay = replay_of()
    odd = dict(replay.inputs)
    for layer in range(keys):
        odd["ffn_up", layer] = odd["ffn_up", layer] + np.float32(1)
    found = explain(Replay(replay.oracle, IDS, replay.inputs, odd), budget=0.0)
    assert found.evidence[0].startswith(said)


def test_a_budget_ends_the_search_and_is_told():
    seen = []
    found = explain(replay_of(entry("activation=silu")), budget=0.0, progress=lambda *told: seen.append(told))
    assert not found.complete
    assert not found.named
    explain(replay_of(entry("activation=silu")), progress=lambda *told: seen.append(told))
    assert seen[-1][0] == "single hypotheses"
    assert seen[-1][1] < seen[-1][2]


def test_nan_is_explained_by_nothing():
    taps = {key: np.full_like(value, np.nan) for key, value in replay_of().inputs.items()}
    cause = attribute(Path(PATH), Oracle(PATH).numerics, Request(ids=IDS, taps=True, lock=taps), taps)
    assert cause.name == ""
    assert "not numbers" in cause.explanation


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


def test_of_a_large_model_some_layers_are_enough(monkeypatch):
    """Those from the first wrong one on; what is captured elsewhere is not replayed, nor its weights decoded."""
    replay = replay_of(entry("activation=silu"))
    read = []
    whole = reference.matrices.decode

    def decode(gguf, name, *arguments, **options):
        read.append(name)
        return whole(gguf, name, *arguments, **options)

    monkeypatch.setattr("reference.matrices.decode", decode)
    locked = Request(ids=IDS, taps=True, lock=replay.inputs)
    cause = attribute(Path(PATH), replay.oracle.numerics, locked, replay.outputs, layers=range(1, 2))
    assert cause.name == "activation=silu"
    assert {name.split(".")[1] for name in read if name.startswith("blk.")} == {"1"}


def test_a_lane_of_a_large_model_is_explained_so(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("crossval.plan.LARGE_MODEL", 0)
    monkeypatch.setattr("crossval.cause.attribute", lambda *_, layers, **__: asked.append(layers))
    lane = liars.climb(Liar(semantics=Semantics(activation="silu")), tmp_path)
    assert lane.located.tap == "ffn_act"
    assert asked == [range(2)]


@pytest.mark.parametrize("at_once", [7, 8192])
def test_ids_are_read_off_an_embedding_a_few_rows_at_a_time(monkeypatch, at_once):
    monkeypatch.setattr("crossval.fits._ROWS_AT_ONCE", at_once)
    oracle = Oracle(PATH)
    embedding = oracle.run(Request(ids=IDS, taps=True)).taps["embd", -1]
    assert ids_of(embedding * np.float32(3), oracle).tolist() == list(IDS)
