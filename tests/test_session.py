"""A session goes on from its prompt, always with the bits of a whole prompt evaluated at once."""

from __future__ import annotations

import numpy as np
import pytest
from test_generate import MODEL, TEXT

import bitnet
from bitnet.cache_pool import PAGE
from bitnet.errors import ResourceLimitError, UsageError

SETTINGS = {"max_new_tokens": 10, "ignore_eos": True}


@pytest.fixture(scope="module")
def model():
    return bitnet.load(MODEL, n_threads=1)


@pytest.fixture
def session(model):
    with model.prefill(TEXT * 6) as held:
        yield held
    assert model.cache_stats.sequences == 0


def alone(ids, **settings):
    return bitnet.load(MODEL, n_threads=1).generate(ids, **SETTINGS, **settings)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "seed": 4, "repetition_penalty": 1.1}])
def test_it_goes_on_as_the_whole_prompt_would(model, session, sampling):
    assert session.n_past == len(session.ids) > PAGE
    for more in ("", " And then", [5, 6, 7], " And then"):
        ids = more if isinstance(more, list) else model.tokenizer.encode(more, add_special=False)
        expected, found = alone([*session.ids, *ids], **sampling), session.generate(more, **SETTINGS, **sampling)
        assert (found.ids, found.text, found.prompt_ids) == (expected.ids, expected.text, expected.prompt_ids)
        assert (found.metrics.cached_tokens, found.metrics.prefill_tokens) == (session.n_past, len(ids))
        assert "".join(session.stream(more, **SETTINGS, **sampling)) == found.text
    other = session.generate([8], **SETTINGS, **sampling)
    assert other.ids != session.generate([5, 6, 7], **SETTINGS, **sampling).ids


def test_its_logits(model, session):
    assert np.array_equal(session.logits, model.logits(session.ids)[-1])
    session.logits[:] = 0  # a copy
    assert session.logits.any()


def test_extending(model, session):
    before = session.ids
    session.extend(" And then")
    assert session.ids == before + model.tokenizer.encode(" And then", add_special=False)
    assert np.array_equal(session.logits, model.logits(session.ids)[-1])
    session.extend([5] * PAGE)
    session.extend("")
    assert np.array_equal(session.logits, model.logits(session.ids)[-1])
    assert session.generate(**SETTINGS).ids == alone(session.ids).ids


def test_what_does_not_fit_leaves_it_as_it_was(model, session):
    before, logits = session.ids, session.logits
    with pytest.raises(ResourceLimitError):
        session.extend([5] * model.config.n_ctx)
    assert session.ids == before
    assert np.array_equal(session.logits, logits)
    with pytest.raises(UsageError, match="outside the vocabulary"):
        session.extend([10**6])
    assert model.cache_stats.sequences == 1


@pytest.mark.parametrize("more", [b"a", None, 5, {"role": "user"}])
def test_what_follows_is_a_text_or_ids(session, more):
    for call in (session.extend, session.generate):
        with pytest.raises(UsageError, match=r"what follows is .*, not a text or token ids"):
            call(more)


def test_forks_are_extended_apart(model, session):
    fork = session.fork()
    fork.extend([7, 7, 7])
    session.extend([8])
    assert fork.generate(**SETTINGS).ids == alone(fork.ids).ids
    assert session.generate(**SETTINGS).ids == alone(session.ids).ids
    assert fork.ids != session.ids
    fork.close()


def test_continuations_at_the_same_time(session):
    expected = [session.generate(more, **SETTINGS).text for more in (" The", " A")]
    readers, texts = [session.stream(more, **SETTINGS) for more in (" The", " A")], ["", ""]
    for _ in range(12):
        for i, reader in enumerate(readers):
            texts[i] += next(reader, "")
    assert texts == expected


def test_a_prompt_that_is_known_is_not_evaluated_again(model, session):
    with model.prefill(session.ids) as again:
        assert again.metrics.cached_tokens == (session.n_past - 1) // PAGE * PAGE
        assert np.array_equal(again.logits, session.logits)


def test_a_prompt_that_is_too_long(model):
    with pytest.raises(ResourceLimitError, match="the prompt has 513 tokens; the model's context is 512"):
        model.prefill([1] * 513)
    assert model.cache_stats.sequences == 0


def test_a_closed_one_says_so(model):
    session = model.prefill("The cat")
    assert repr(session) == f"<bitnet.Session {session.n_past} tokens>"
    session.close()
    session.close()
    assert "closed" in repr(session)
    for call in (session.generate, lambda: session.extend([1]), session.fork, lambda: session.logits):
        with pytest.raises(UsageError, match="the session is closed"):
            call()
