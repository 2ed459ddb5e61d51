"""Files of what was observed, judged whole: a late row, a row of NaN and an id that no row favours are each found."""

from __future__ import annotations

from dataclasses import replace

import golden_models
import numpy as np
import pytest

from crossval.catalogue import BY_NAME, hypothesis
from crossval.fits import variant_of
from crossval.infer_observed import judge
from crossval.mutants import Mutant
from crossval.observed import Observed
from reference.oracle import Oracle
from reference.runner import Request

PROMPT = (1, 45, 300, 7, 7, 19)
ORACLE = Oracle(golden_models.model("b158_a"))
N = 24
SILU = hypothesis(BY_NAME["activation=silu"])
WINDOW = hypothesis(BY_NAME["window"], 18)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    hypotheses = [SILU, WINDOW, hypothesis(BY_NAME["rope_style=interleaved"])]
    for module in ("infer", "infer_ids"):
        monkeypatch.setattr(f"crossval.{module}.written", lambda: hypotheses)
    monkeypatch.setattr("crossval.infer_ids.numbers", lambda _: [])
    monkeypatch.setattr("crossval.infer.guesses.tensors", lambda _: [])
    monkeypatch.setattr("crossval.infer.guesses.numbers", lambda *_: [])


def observed(*hypotheses, n_greedy=N):
    made = Mutant.of(variant_of(ORACLE, *hypotheses), 1).run(Request(ids=PROMPT, n_greedy=n_greedy))
    return Observed(prompt_ids=PROMPT, generated_ids=made.generated, logits=made.logits)


@pytest.fixture(scope="module")
def honest():
    return observed()


def with_rows(seen, rows, value):
    logits = seen.logits.copy()
    logits[rows] = value
    return replace(seen, logits=logits)


def test_an_honest_file_is_right(honest):
    found = judge(ORACLE, honest)
    assert not found.wrong
    assert found.sentence == "the logits are the contract's, as near as the model is to itself"
    assert (found.cause, found.logits, found.ids) == (None, None, None)
    assert not judge(ORACLE, replace(honest, generated_ids=(), logits=honest.logits[: len(PROMPT)])).wrong


@pytest.mark.parametrize("row", [0, 3, 9, len(PROMPT) + N - 2])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_found_wherever_it_is(honest, row, value):
    one = judge(ORACLE, with_rows(honest, (row, 5), value))
    assert one.wrong
    assert f"row {row} of {len(honest.logits)} of the logits, counted from 0, is the first that is not" in one.sentence
    assert one.cause.name == ""
    assert ("the logits of the first" in one.sentence) == (row > 0)


@pytest.mark.parametrize("first", [16, len(PROMPT) + N - 2])
def test_wrong_rows_are_found_however_late(honest, first):
    rng = np.random.default_rng(0)
    logits = honest.logits.copy()
    logits[first:] = rng.standard_normal(logits[first:].shape)
    found = judge(ORACLE, replace(honest, logits=logits))
    assert found.wrong
    assert found.cause.name == ""
    assert found.logits.positions[1] > first


def test_a_defect_that_only_late_rows_have_is_named():
    """The rows of the prompt and of the first steps are the contract's."""
    found = judge(ORACLE, observed(WINDOW))
    assert found.wrong
    assert found.cause.name == WINDOW.name
    judged, shown = found.logits.positions
    assert 0 < judged <= shown - 18


def test_ids_that_its_own_rows_do_not_favour_are_found(honest):
    """A broken sampler behind an engine that computes as it should, on the ids that it chose."""
    chosen = (*honest.generated_ids[:4], honest.generated_ids[4] ^ 1, *(7,) * (N - 5))
    logits = ORACLE.run(Request(ids=(*PROMPT, *chosen[:-1]))).logits
    found = judge(ORACLE, Observed(prompt_ids=PROMPT, generated_ids=chosen, logits=logits))
    assert found.wrong
    assert f"the first at step 4: {chosen[4]} where {honest.generated_ids[4]} is" in found.sentence
    assert found.sentence.startswith("the logits are the contract's, as near as the model is to itself; ")
    assert (found.ids.contract.equal, found.cause, found.logits) == (4, None, None)


@pytest.mark.parametrize("step", [10, N - 1])
def test_ids_without_rows_are_held_to_the_contract(honest, step):
    cut = replace(honest, logits=honest.logits[: len(PROMPT) + 6])
    found = judge(ORACLE, cut)
    assert not found.wrong
    assert found.sentence.endswith(f"of the ids without logits: the contract chooses exactly these {N} tokens")
    broken = (*honest.generated_ids[:step], honest.generated_ids[step] ^ 1, *honest.generated_ids[step + 1 :])
    found = judge(ORACLE, replace(cut, generated_ids=broken))
    assert found.wrong
    assert found.ids.contract.equal == step


def test_ids_alone(honest):
    assert not judge(ORACLE, replace(honest, logits=None)).wrong
    assert judge(ORACLE, replace(honest, logits=None, generated_ids=(3, 3, 3))).wrong


def test_a_defect_of_all_rows_is_named():
    found = judge(ORACLE, observed(SILU))
    assert found.cause.name == "activation=silu"
    assert "no operation was observed" in found.sentence
