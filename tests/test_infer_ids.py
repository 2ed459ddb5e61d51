"""Causes from ids alone: what chooses exactly these tokens is listed, what does not, too, and no more is claimed."""

from __future__ import annotations

import golden_models
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossval.catalogue import BY_NAME, hypothesis
from crossval.fits import variant_of
from crossval.infer_ids import _choice, contract_alone, infer_ids
from crossval.mutants import Mutant
from reference.oracle import Oracle
from reference.runner import Request

PROMPT = (1, 45, 300, 7, 7, 19)
ORACLE = Oracle(golden_models.model("b158_a"))
FEW = ("activation=silu", "activation=gelu", "rope_style=interleaved", "norm=layernorm", "activation_rounding=away")


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr("crossval.infer_ids.written", lambda: [hypothesis(BY_NAME[name]) for name in FEW])
    monkeypatch.setattr("crossval.infer_ids.numbers", lambda _: [])


def chosen(*names):
    mutant = Mutant.of(variant_of(ORACLE, *(hypothesis(BY_NAME[name]) for name in names)), 1)
    return mutant.run(Request(ids=PROMPT, n_greedy=8)).generated


def test_the_hypothesis_that_chooses_these_ids_is_told():
    found = infer_ids(ORACLE, PROMPT, chosen("activation=silu"))
    assert not found.contract.exact
    assert "activation=silu" in [c.name for c in found.reproducing]
    assert "rope_style=interleaved" in [c.name for c in found.differing]
    assert {c.name for c in (*found.reproducing, *found.differing)} == set(FEW)
    assert "choose exactly these tokens: " in found.sentence
    assert "the contract chooses another token at step" in found.sentence


def test_ids_of_the_contract_show_no_defect():
    found = infer_ids(ORACLE, PROMPT, chosen())
    assert found.contract.exact
    assert "activation_rounding=away" in [c.name for c in found.reproducing]
    assert found.sentence.endswith("ids show no defect")


def test_ids_that_nothing_chooses_are_unexplained():
    found = infer_ids(ORACLE, PROMPT, (3, 3, 3, 3, 3, 3))
    assert found.reproducing == ()
    assert "unexplained: none of 5 hypotheses" in found.sentence
    assert all(not c.near_tie or c.equal < c.of for c in found.differing)


@given(st.integers(0, 10**6), st.lists(st.sampled_from(["same", "tie", "other"]), min_size=1, max_size=6))
def test_near_ties_are_stepped_over(seed, kinds):
    """What is evaluated after one is the engine's own continuation, so that a later difference counts."""
    logits = np.random.default_rng(seed).permuted(np.tile(np.arange(9.0, dtype=np.float32), (len(kinds), 1)), axis=1)
    order = logits.argsort(axis=1)
    given_ids = tuple(int(row[-1 - ["same", "tie", "other"].index(k)]) for row, k in zip(order, kinds, strict=True))
    found = _choice("h", "", logits, given_ids, 1.0)
    first = [i for i, kind in enumerate(kinds) if kind == ("other" if "other" in kinds else "tie")]
    assert found.equal == (first[0] if first else len(kinds))
    assert found.exact == (set(kinds) == {"same"})
    assert found.near_tie == ("tie" in kinds and "other" not in kinds)


def test_a_hypothesis_is_tried_beyond_a_near_tie(monkeypatch):
    """Each of these tokens is as good as any other here: the first two settle nothing."""
    monkeypatch.setattr("crossval.infer_ids._margin", lambda *_: 1e9)
    found = infer_ids(ORACLE, PROMPT, (3, 3, 3, 3, 3, 3))
    assert found.contract.near_tie
    assert found.sentence.startswith("the contract chooses another token at step 0 of 6, and only where two tokens are")
    assert all(c.near_tie and not c.exact for c in found.choices)
    runs = []
    monkeypatch.setattr("crossval.infer_ids._forced", lambda o, p, g: runs.append(len(g)) or np.zeros((len(g), 9)))
    infer_ids(ORACLE, PROMPT, (3, 3, 3, 3, 3, 3))
    assert runs[1:] == [2, 6] * len(FEW)


def test_the_contract_alone_from_a_step_on():
    honest = chosen()
    assert contract_alone(ORACLE, PROMPT, honest, 3).contract.exact
    broken = (*honest[:5], honest[5] ^ 1, *honest[6:])
    found = contract_alone(ORACLE, PROMPT, broken, 3)
    assert (found.contract.equal, found.contract.of, found.contract.near_tie) == (5, 8, False)
    assert found.sentence_of_contract == "the contract chooses another token at step 5 of 8"
    assert contract_alone(ORACLE, PROMPT, broken, 0).contract.equal == 5


def test_a_budget_ends_the_search_and_is_told():
    told = []
    found = infer_ids(ORACLE, PROMPT, chosen("activation=silu"), budget=-1.0, progress=lambda *said: told.append(said))
    assert (found.complete, found.choices, told) == (False, (), [])
    assert "time ended" in found.sentence
