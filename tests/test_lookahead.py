"""Guesses are cheap and change nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bitnet
from bitnet.lookahead import LONGEST, MOST, SHORTEST, Lookahead

PATH = "fixtures/models/tiny-relu2.i2_s.gguf"


def plain(ids, room):
    """What followed the longest run of tokens that ended the text before, found by looking."""
    for n in range(LONGEST, SHORTEST - 1, -1):
        for end in range(len(ids) - 1, n - 1, -1):
            if len(ids) >= n and ids[end - n : end] == ids[-n:]:
                return ids[end : end + max(0, min(room, MOST))]
    return []


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(0, 6))
def test_proposals_against_a_plain_search(ids, room):
    ahead = Lookahead(ids[:5])
    for token in ids[5:]:
        ahead.propose(room)
        ahead.append(token)
    assert ahead.propose(room) == plain(ids, room)


def test_wrong_guesses_are_followed_by_a_rest_that_grows():
    ahead = Lookahead([1, 2, 3, 1, 2])
    made = []
    for _ in range(12):
        guesses = ahead.propose(9)
        made.append(bool(guesses))
        ahead.judge(len(guesses), 0)
    assert made == [True, False, True, False, False, True, False, False, False, False, True, False]
    ahead.judge(3, 1)
    assert (ahead.proposed, ahead.accepted) == (15, 1)


@pytest.fixture(scope="module")
def model():
    return bitnet.load(PATH)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"repetition_penalty": 1.2},
        {"temperature": 0.7, "seed": 3},
        {"temperature": 1.2, "top_k": 5, "seed": 4},
        {"temperature": 0.9, "top_p": 0.8, "seed": 5},
        {"stop": ("the ",)},
    ],
)
def test_the_same_tokens_with_and_without(model, settings):
    text = "One day Anna saw a fox. One day Anna saw a fox. One day Anna"
    with_, without = (
        model.generate(text, max_new_tokens=60, lookahead=lookahead, **settings) for lookahead in (True, False)
    )
    assert with_.ids == without.ids
    assert (with_.text, with_.stop_reason) == (without.text, without.stop_reason)
    assert with_.metrics.decode_tokens == without.metrics.decode_tokens
    assert without.metrics.guessed_tokens == 0


def test_a_text_that_repeats_itself_is_guessed(model):
    ids = model.encode("The fox ran. ") * 12
    found = model.generate(ids, max_new_tokens=80, ignore_eos=True)
    assert found.metrics.guessed_tokens >= found.metrics.accepted_tokens > 0


def test_rejected_guesses_leave_no_trace_in_the_cache(model, monkeypatch):
    """Guesses that are always wrong: every pass takes entries back."""
    expected = model.generate("Tom was", max_new_tokens=30, lookahead=False, ignore_eos=True).ids
    rng = np.random.default_rng(0)
    wrong = lambda self, room: [int(i) for i in rng.integers(0, model.config.n_vocab, min(room, MOST))]  # noqa: E731  # a method
    monkeypatch.setattr(Lookahead, "propose", wrong)
    found = model.generate("Tom was", max_new_tokens=30, ignore_eos=True)
    assert found.ids == expected
    assert found.metrics.guessed_tokens > 60


def test_not_where_rounding_depends_on_the_pass():
    from bitnet.config import BITNET_CPP

    model = bitnet.load(PATH, numerics=BITNET_CPP)
    assert model.generate([5, 6, 5, 6, 5, 6], max_new_tokens=10).metrics.guessed_tokens == 0
