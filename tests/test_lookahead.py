"""Guesses are cheap and change nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bitnet
from bitnet.lookahead import LONGEST, MOST, PLACES, SHORTEST, Lookahead, PassCost

PATH = "fixtures/models/tiny-relu2.i2_s.gguf"


def plain(ids):
    """What followed the place most like the end of the text, found by looking; the text goes round."""
    found, most = None, 0
    places = [i for i in range(SHORTEST, len(ids)) if ids[i - SHORTEST : i] == ids[-SHORTEST:]]
    for at in places[::-1][:PLACES]:
        equal = next((n for n in range(min(LONGEST, at), 0, -1) if ids[at - n : at] == ids[-n:]), 0)
        if equal > most:
            found, most = at, equal
    if found is None:
        return []
    endless = list(ids)
    while len(endless) < len(ids) + MOST:
        endless.append(endless[found + len(endless) - len(ids)])
    return endless[len(ids) :]


def free(_n_token):
    """Guesses cost nothing: as many as possible are made."""
    return 1.0


@given(st.lists(st.integers(0, 2), max_size=60), st.integers(0, 9))
def test_proposals_against_a_plain_search(ids, room):
    ahead = Lookahead(ids[:5], free)
    for token in ids[5:]:
        ahead.propose(room)
        ahead.append(token)
    assert ahead.propose(room) == plain(ids)[:room]


@given(st.floats(0, 1), st.integers(0, MOST), st.lists(st.floats(1, 9), min_size=MOST, max_size=MOST))
def test_the_number_of_guesses_is_the_one_that_gives_most_tokens_for_its_time(right, room, costs):
    cost = dict(enumerate([1.0, *costs], start=1))
    rates = [sum(right**i for i in range(n + 1)) / cost[n + 1] for n in range(room + 1)]
    chosen = Lookahead([], cost.__getitem__)._number(right, room)
    assert rates[chosen] == pytest.approx(max(rates))
    assert rates[chosen] >= 1  # never slower than without, as far as is known


def repeat(ahead, ids, times):
    """Proposals while a text says the same again and again."""
    made = []
    for token in list(ids) * times:
        made.append(len(ahead.propose(99)))
        ahead.append(token)
    return made


def test_a_text_that_repeats_itself_is_guessed_further_and_further_ahead():
    made = repeat(Lookahead([], PassCost()), range(20), 8)
    assert not any(made[:22])
    assert 0 < np.mean(made[25:40]) < np.mean(made[-20:])


def test_where_guesses_fail_none_are_made_and_none_need_be_made_to_see_that_they_succeed():
    rng = np.random.default_rng(0)
    ahead = Lookahead([], PassCost())
    made = repeat(ahead, rng.integers(0, 3, 400).tolist(), 1)
    assert np.mean(made[200:]) < 0.5  # three tokens at random: the two before say nothing of the next
    assert sum(repeat(ahead, range(10, 30), 4)[40:]) > 40


def test_what_passes_cost_is_measured():
    cost = PassCost()
    usual = [cost(n) for n in range(1, MOST + 2)]
    assert usual == sorted(usual)
    assert usual[0] == 1
    cost.record(2, 1.0)
    assert cost(2) == usual[1]  # over what?
    for seconds in (9.0, 1.0, 1.0):  # the first pass does more than pass
        cost.record(1, seconds)
    for seconds in (1.2, 1.25, 1.3):
        cost.record(2, seconds)
    assert cost(2) == pytest.approx(1.225)
    assert 1 < cost(4) < usual[3]  # not seen, and likely to be cheaper than usual, too
    for _ in range(2):
        cost.record(4, 1.3)
    assert cost(4) == pytest.approx(1.3)
    cost.record(512, 1.0)  # a prompt
    assert cost(1) == 1


def test_a_pass_that_waited_for_a_compiler_does_not_end_all_guessing():
    cost = PassCost()
    usual = cost(2)
    for seconds in (1.0, 1.0, 60.0, 1.0):
        cost.record(1, seconds)
    cost.record(2, 60.0)
    assert cost(2) == usual
    for _ in range(2):
        cost.record(2, 1.1)
    assert cost(2) == pytest.approx(1.1)


def test_what_was_slow_for_a_time_is_tried_again():
    cost = PassCost()
    usual = cost(2)
    for _ in range(10):
        cost.record(1, 1.0)
        cost.record(2, 9.0)
    assert cost(2) == pytest.approx(9.0)
    for _ in range(300):
        cost.record(1, 1.0)
    assert cost(2) == usual


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
