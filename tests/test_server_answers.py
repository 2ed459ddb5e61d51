"""Answers of servers: log-probabilities come back to the bit whatever the order, and no lie is believed."""

import math

import fake_llama_server as fake
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference.runner import ReferenceUnavailableError
from reference.server_answers import LEAST, NonsenseError, Pieces, by_id, by_piece, entry_of, joined

LOGITS = st.lists(st.floats(-30.0, 30.0, width=32), min_size=3, max_size=24)
SHOWN = ("a", "b", "c", "same", "same", "d")


def normalised(logits):
    return np.array(fake.log_probabilities(list(logits)))


def with_ids(told, order):
    best = int(np.argmax(told))
    return {"id": best, "top_logprobs": [{"id": i, "logprob": float(told[i])} for i in order]}


def with_texts(logits, shown, banned=(), lifted=None, lift=0.0):
    """As an older server lists them, its sampler's changes applied."""
    logits = np.array(logits, float)
    if lifted is not None:
        logits[lifted] += lift
    logits[list(banned)] = -np.inf
    p = np.exp(logits - logits.max())
    p = p / p.sum()
    order = np.argsort(-p, kind="stable")
    listed = [{"tok_str": shown[i], "prob": float(p[i])} for i in order]
    return {"content": shown[int(order[0])], "probs": listed}


@given(LOGITS, st.randoms())
def test_ids_in_any_order(logits, random):
    told = normalised(logits)
    order = list(range(len(told)))
    random.shuffle(order)
    assert (by_id(with_ids(told, order), len(told)) == told.astype(np.float32)).all()


@given(st.lists(st.floats(-20.0, 20.0), min_size=6, max_size=6), st.sampled_from([0.0, 16.0, 40.0]))
def test_texts_that_are_shared_are_told_in_turn(logits, lift):
    pieces = Pieces(shown=SHOWN)
    assert len(pieces.rounds) == 2
    lifted = pieces.favoured if lift else None
    rounds = [by_piece(with_texts(logits, SHOWN, banned, lifted, lift), pieces, banned) for banned in pieces.rounds]
    assert joined(rounds, lifted=lifted, lift=lift) == pytest.approx(normalised(logits), abs=4e-6)


def test_texts_that_are_not_shared_take_one_request():
    pieces = Pieces(shown=("x", "y", "z"))
    assert pieces.rounds == (frozenset(),)
    assert joined([by_piece(with_texts([1.0, 3.0, 2.0], pieces.shown), pieces, frozenset())]) == pytest.approx(
        normalised([1.0, 3.0, 2.0]), abs=1e-6
    )


def test_too_many_tokens_with_one_text_are_refused():
    with pytest.raises(ReferenceUnavailableError, match="5 of this model's have one text"):
        Pieces(shown=("same",) * 5 + ("a",))
    with pytest.raises(ReferenceUnavailableError, match="whole characters"):
        Pieces(shown=("é", "\N{REPLACEMENT CHARACTER}"))


TOLD = normalised([1.0, 3.0, 2.0, -1.0])


def changed(**fields):
    entry = with_ids(TOLD, [1, 2, 0, 3])
    entry["top_logprobs"][1] |= fields
    return entry


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (changed(id=1), "or is there twice"),
        (changed(id=4), "4 is no id"),
        (changed(id=True), "True is no id"),
        (changed(id=2.0), r"2\.0 is no id"),
        (changed(logprob=math.nan), "nan is no number"),
        (changed(logprob=None), "None is no number"),
        (changed(logprob="-1"), "'-1' is no number"),
        (changed(logprob=False), "False is no number"),
        (changed(logprob=-math.inf), "-inf is no number"),
        (changed(logprob=0.0), "it chose 1"),
        (changed(logprob=-3.0), "do not sum to 1"),
        ({**changed(), "id": 2}, "it chose 2"),
        ({**changed(), "id": None}, "it chose None"),
        ({"id": 1, "top_logprobs": changed()["top_logprobs"][:3]}, "3 probabilities for a vocabulary of 4"),
        ({"id": 1, "top_logprobs": [1, 2, 3, 4]}, "not every probability"),
        ({"id": 1, "top_logprobs": "all"}, "no probabilities"),
    ],
)
def test_lies_with_ids_are_refused(entry, why):
    with pytest.raises(NonsenseError, match=why):
        by_id(entry, 4)


def test_a_logit_that_float32_does_not_tell_is_not_invented():
    told = normalised([0.0, 0.0, LEAST * 1.2])
    with pytest.raises(ReferenceUnavailableError, match="token 2"):
        by_id(with_ids(told, [0, 1, 2]), 3)
    pieces = Pieces(shown=("x", "y", "z"))
    with pytest.raises(ReferenceUnavailableError, match="token 2"):
        by_piece(with_texts([0.0, 0.0, -800.0], pieces.shown), pieces, frozenset())


def of_texts(at, **fields):
    entry = with_texts([1.0, 3.0, 2.0, -1.0, 0.5, 0.0], SHOWN, (4,))
    entry["probs"][at] |= fields
    return entry


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (of_texts(1, tok_str="b"), "'b' is there twice"),
        (of_texts(1, tok_str="other"), "'c' is missing"),
        (of_texts(1, tok_str=3), "3 of probability"),
        (of_texts(1, prob=-0.1), "of probability"),
        (of_texts(1, prob=1.5), "of probability"),
        (of_texts(1, prob=math.nan), "no number"),
        (of_texts(1, prob=0.9), "do not sum to 1|it chose"),
        (of_texts(1, prob=0.01), "do not sum to 1"),
        (of_texts(5, tok_str="more"), "'more' is no token's text"),
        ({**of_texts(0), "content": "c"}, "it chose 'c'"),
        ({**of_texts(0), "probs": of_texts(0)["probs"][:-1]}, "5 probabilities"),
    ],
)
def test_lies_with_texts_are_refused(entry, why):
    with pytest.raises(NonsenseError, match=why):
        by_piece(entry, Pieces(shown=SHOWN), frozenset({4}))


def test_the_entry_of_an_answer():
    assert entry_of({"completion_probabilities": []}) is None
    assert entry_of({"completion_probabilities": [{"probs": []}]}) == {"probs": []}
    for nonsense in ([], "text", {"completion_probabilities": [1]}, {"completion_probabilities": [{}, {}]}):
        with pytest.raises(NonsenseError):
            entry_of(nonsense)
    with pytest.raises(ReferenceUnavailableError, match="no probabilities"):
        entry_of({"content": "x"})
    with pytest.raises(ReferenceUnavailableError, match="a form that is not known") as caught:
        entry_of({"completion_probabilities": [{"tokens": []}]})
    assert "tokens" in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["id", "logprob", "tok_str", "prob", "content"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(st.fixed_dictionaries({"top_logprobs": JSON, "probs": JSON, "id": JSON, "content": JSON}))
def test_any_json_is_an_answer_or_a_typed_refusal(entry):
    for read in (lambda: by_id(entry, 3), lambda: by_piece(entry, Pieces(shown=("x", "y", "z")), frozenset())):
        try:
            found = read()
        except (NonsenseError, ReferenceUnavailableError):
            continue
        assert abs(float(np.exp(found).sum()) - 1.0) < 2e-3
