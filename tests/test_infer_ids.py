"""Causes from ids alone: what chooses exactly these tokens is listed, what does not, too, and no more is claimed."""

from __future__ import annotations

import golden_models
import pytest

from crossval.catalogue import BY_NAME, hypothesis
from crossval.fits import variant_of
from crossval.infer_ids import infer_ids
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


def test_a_budget_ends_the_search_and_is_told():
    told = []
    found = infer_ids(ORACLE, PROMPT, chosen("activation=silu"), budget=-1.0, progress=lambda *said: told.append(said))
    assert (found.complete, found.choices, told) == (False, (), [])
    assert "time ended" in found.sentence
