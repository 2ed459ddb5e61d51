"""Prefill, decode, stop: on a network that says what it is told, and on a real one."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_config import model_config

import bitnet
from bitnet import generate
from bitnet.cache_pool import PAGE
from bitnet.errors import BitNetError, ResourceLimitError, UsageError
from bitnet.generate import Decoder, prefill
from bitnet.generation_config import GenerationConfig
from bitnet.linear import Backend
from bitnet.metrics import Meter
from bitnet.model import Candidates, Network
from bitnet.runtime import Runtime

MODEL = Path(__file__).parents[1] / "fixtures" / "models" / "tiny-relu2.i2_s.gguf"
TEXT = " Tom was a kind boy. The cat sat by the house."


@pytest.fixture(scope="module")
def model():
    return bitnet.load(MODEL, n_threads=1)


@pytest.fixture(scope="module")
def tokenizer(model):
    return model.tokenizer


class Scripted(Runtime):
    """A model that makes `script` its most likely continuation, and notes every pass."""

    def __init__(self, script, *, n_vocab, n_ctx=64):
        config = model_config(n_vocab=n_vocab, n_ctx=n_ctx)
        backend = Backend("plain", 1)
        super().__init__(network=Network(config=config, weights=None, backend=backend), load_seconds=0.5)
        self.script = list(script)
        self.calls, self.capacities = [], []

    def open_cache(self, n_ctx, context="stop"):
        self.capacities.append(n_ctx)
        return super().open_cache(n_ctx, context)

    def step(self, batch, meters, counts=None):
        rows = []
        for ids, cache in batch:
            cache.reserve(len(ids))
            cache.advance(ids)
            self.calls.append(tuple(ids))
            rows.append(np.zeros(self.config.n_vocab, np.float32))
            rows[-1][self.script[len(self.calls) - 1]] = 9
        return [[Candidates(ids=None, logits=row)] for row in rows]


@pytest.fixture
def say(tokenizer):
    """Generate a scripted continuation of three tokens; returns the pieces, the result and the network."""

    def run(script, *, n_ctx=64, **settings):
        network = Scripted(script, n_vocab=tokenizer.n_vocab, n_ctx=n_ctx)
        decoder = Decoder(network, tokenizer, (1, 2, 3), GenerationConfig(**settings))
        return list(decoder), decoder.result, network

    return run


@pytest.fixture(scope="module")
def script(tokenizer):
    ids = tokenizer.encode(TEXT, add_special=False)
    assert len(ids) > 8
    return ids


def test_length(say, script, tokenizer):
    for n in (1, 5):
        pieces, result, network = say(script, max_new_tokens=n)
        assert (result.ids, result.stop_reason, result.prompt_ids) == (script[:n], "length", (1, 2, 3))
        assert "".join(pieces) == result.text == tokenizer.decode(script[:n])
        assert network.calls == [(1, 2, 3), *((i,) for i in script[: n - 1])]  # the last is not evaluated
        assert network.capacities == [3 + n]


def test_no_tokens_at_all(say, script):
    pieces, result, network = say(script, max_new_tokens=0)
    assert (pieces, result.text, result.ids, result.stop_reason) == ([], "", (), "length")
    assert network.calls == []
    assert (result.metrics.prefill_tokens, result.metrics.decode_tokens, result.metrics.decode_rate) == (0, 0, 0.0)


def test_the_models_own_end(say, script, tokenizer):
    for end in sorted(tokenizer.end_ids):
        _, result, network = say((*script[:4], end, *script), max_new_tokens=20)
        assert (result.ids, result.stop_reason) == (script[:4], "end_token")
        assert len(network.calls) == 5
    _, result, _ = say((end, *script), max_new_tokens=20)
    assert (result.ids, result.text, result.stop_reason) == ((), "", "end_token")
    _, result, _ = say((*script[:2], end, *script), max_new_tokens=5, ignore_eos=True)
    assert (result.ids, result.stop_reason) == ((*script[:2], end, *script[:2]), "length")


def test_stop_ids(say, script):
    stop = next(i for i in script if script.index(i) >= 3)
    _, result, _ = say(script, max_new_tokens=20, stop_ids=(stop,), ignore_eos=True)
    assert (result.ids, result.stop_reason) == (script[: script.index(stop)], "end_token")


def test_a_stop_string_across_every_border_of_tokens(say, script, tokenizer):
    tried = 0
    for n in range(1, len(script)):
        border, after = len(tokenizer.decode(script[:n])), tokenizer.decode(script)
        stop = after[border - 2 : border + 2]
        at = after.find(stop)
        if at != border - 2 or len(stop) < 4:
            continue  # the text holds it earlier
        tried += 1
        pieces, result, network = say((*script, *script), max_new_tokens=60, stop=(stop,))
        assert (result.text, result.stop_reason) == (after[:at], "stop_string")
        assert "".join(pieces) == result.text  # nothing of it was shown before it was known
        assert tokenizer.decode(result.ids).startswith(after[: border + 2])
        assert len(network.calls) == len(result.ids)
    assert tried >= 5


def test_a_stop_string_that_never_comes_is_given_back(say, script, tokenizer):
    text = tokenizer.decode(script[:6])
    pieces, result, _ = say(script, max_new_tokens=6, stop=(text[-3:] + "?!",))
    assert "".join(pieces) == result.text == text
    assert result.stop_reason == "length"


def test_a_character_in_several_tokens_is_never_cut(say, tokenizer):
    ids = tokenizer.encode("a🐈é", add_special=False)
    pieces, result, _ = say(ids, max_new_tokens=len(ids))
    assert "".join(pieces) == result.text == "a🐈é"
    assert "�" not in "".join(pieces)
    _, cut, _ = say(ids, max_new_tokens=2)
    assert cut.text == "a�"


def test_the_context_ends_it(say, script):
    _, result, network = say(script, n_ctx=8, max_new_tokens=20)
    assert (result.ids, result.stop_reason) == (script[:5], "context")
    assert network.capacities == [8]
    _, result, _ = say(script, n_ctx=8, max_new_tokens=5)
    assert result.stop_reason == "length"
    for n_ctx in (2, 3):
        with pytest.raises(ResourceLimitError, match=f"prompt has 3 tokens; the model's context is {n_ctx}"):
            say(script, n_ctx=n_ctx)


def test_timing_counts_what_was_evaluated_and_not_the_reader(tokenizer, script):
    end = min(tokenizer.end_ids)
    network = Scripted((*script[:4], end), n_vocab=tokenizer.n_vocab)
    decoder = Decoder(network, tokenizer, (1, 2, 3), GenerationConfig(max_new_tokens=20))
    began, slept = time.perf_counter(), 0
    for _ in decoder:
        time.sleep(0.05)
        slept += 1
    metrics = decoder.result.metrics
    assert (metrics.prompt_tokens, metrics.prefill_tokens, metrics.cached_tokens, metrics.decode_tokens) == (3, 3, 0, 4)
    took = time.perf_counter() - began - 0.05 * slept
    assert 0 < metrics.prefill_seconds < metrics.first_token_seconds <= took
    assert 0 < metrics.decode_seconds <= took
    assert metrics.decode_rate == 4 / metrics.decode_seconds
    assert metrics.load_seconds == 0.5


def test_logits_that_are_not_numbers_stop_it_with_an_error(tokenizer):
    class Broken(Scripted):
        def step(self, batch, meters, counts=None):
            super().step(batch, meters)
            return [[Candidates(ids=None, logits=np.full(self.config.n_vocab, np.nan, np.float32))]]

    broken = Broken([0], n_vocab=tokenizer.n_vocab)
    with pytest.raises(BitNetError, match="no logit is a finite number"):
        list(Decoder(broken, tokenizer, (1,), GenerationConfig()))
    assert broken.pool.stats().sequences == 0


# --- a real model --------------------------------------------------------------------------------------------------

SETTINGS = {"max_new_tokens": 16, "ignore_eos": True}


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1}])
def test_streaming_equals_the_whole_text_and_a_seed_repeats_it(model, sampling):
    config = GenerationConfig(**SETTINGS, **sampling, seed=3)
    whole = model.generate("One day Anna", config)
    assert "".join(model.stream("One day Anna", config)) == whole.text
    again = model.generate("One day Anna", config)
    assert (again.text, again.ids) == (whole.text, whole.ids)
    assert len(whole.ids) == 16
    other = model.generate("One day Anna", config, seed=4)
    assert (other.ids == whole.ids) is not bool(sampling)


def test_greedy_tokens_are_those_of_the_logits(model):
    result = model.generate("The cat", **SETTINGS)
    logits = model.logits((*result.prompt_ids, *result.ids[:-1]))
    assert tuple(logits[len(result.prompt_ids) - 1 :].argmax(axis=1)) == result.ids


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_a_prompt_in_chunks_has_the_same_logits(model, monkeypatch, chunk):
    ids = model.encode(TEXT)
    monkeypatch.setattr(generate, "PREFILL_CHUNK", chunk)
    cache, meter = model.network.new_cache(len(ids)), Meter()
    steps = list(prefill(model.runtime, ids, cache, meter))
    assert np.array_equal(steps[-1].logits, model.logits(ids)[-1])
    assert len(steps) == -(-len(ids) // chunk)
    assert cache.n_past == meter.prefill_tokens == len(ids)


def test_a_full_context_on_a_real_model(model):
    before = model.network.config
    model.network.config = replace(before, n_ctx=12)
    try:
        result = model.generate([1, 2, 3], max_new_tokens=50, ignore_eos=True)
    finally:
        model.network.config = before
    assert (len(result.ids), result.stop_reason) == (9, "context")


def test_prompts(model):
    ids = model.tokenizer.encode("The cat")
    assert model.encode("The cat") == model.encode(list(ids)) == ids
    with pytest.raises(UsageError, match="no tokens"):
        model.encode([])
    with pytest.raises(UsageError, match="outside the vocabulary"):
        model.generate([10**6])


# --- the cache across calls ------------------------------------------------------------------------------------------

LONG = [i * 7 % 900 for i in range(2 * PAGE + 30)]


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "top_k": 20, "seed": 3}])
def test_a_prompt_that_begins_as_another_takes_its_pages_and_gives_the_same(sampling):
    fresh, used = (bitnet.load(MODEL, n_threads=1) for _ in range(2))
    first = used.generate(LONG, **SETTINGS, **sampling)
    assert first.metrics.cached_tokens == 0
    for prompt, n in ((LONG, 2), ([*LONG[: PAGE + 5], 3], 1), ([3, *LONG], 0), ([*LONG, *first.ids, 3], 2)):
        fresh.runtime.pool.forget_all()
        expected, found = (m.generate(prompt, **SETTINGS, **sampling) for m in (fresh, used))
        assert (found.ids, found.text) == (expected.ids, expected.text)
        assert found.metrics.cached_tokens == n * PAGE
        assert found.metrics.prefill_tokens == len(prompt) - n * PAGE
        assert found.metrics.prompt_tokens == len(prompt)
        assert expected.metrics.cached_tokens == 0
    stats = used.cache_stats
    assert (stats.lookups, stats.hits, stats.hit_tokens, stats.used, stats.promised) == (5, 3, 5 * PAGE, 0, 0)


def test_what_was_generated_is_found_again(model):
    """As the next turn of a conversation does."""
    first = model.generate(LONG[:20], max_new_tokens=PAGE, ignore_eos=True)
    again = model.generate([*LONG[:20], *first.ids, 5], max_new_tokens=1)
    assert again.metrics.cached_tokens == PAGE


def test_a_stale_page_would_be_noticed():
    model = bitnet.load(MODEL, n_threads=1)
    expected = model.generate(LONG, **SETTINGS)
    model.runtime.pool.values[:] *= -3
    assert model.generate(LONG, **SETTINGS).ids != expected.ids


# --- sliding ---------------------------------------------------------------------------------------------------------


def test_sliding_goes_on_past_the_context(model, monkeypatch):
    n_ctx = model.config.n_ctx
    stopped = model.generate("The cat", max_new_tokens=2 * n_ctx, ignore_eos=True)
    assert stopped.stop_reason == "context"
    slid = model.generate("The cat", max_new_tokens=n_ctx + 40, ignore_eos=True, context="slide")
    assert (len(slid.ids), slid.stop_reason) == (n_ctx + 40, "length")
    assert slid.ids[: len(stopped.ids)] == stopped.ids  # nothing changes before the context is full
    monkeypatch.setattr(generate, "PREFILL_CHUNK", 50)
    prompt = [*slid.prompt_ids, *slid.ids[:-10]]  # a prompt longer than the context
    again = model.generate(prompt, max_new_tokens=10, ignore_eos=True, context="slide")
    assert again.ids == slid.ids[-10:]  # as if they had been generated
    with pytest.raises(ResourceLimitError, match="let the context slide"):
        model.generate(prompt)


# --- ending early ----------------------------------------------------------------------------------------------------


def test_cancelling_ends_it_after_the_token_in_progress(model):
    decoder = model.decoder("The cat", max_new_tokens=100, ignore_eos=True)
    pieces = []
    for piece in decoder:
        pieces.append(piece)
        if len(pieces) == 3:
            decoder.cancel()
    assert decoder.result.stop_reason == "cancelled"
    assert decoder.result.text == "".join(pieces)
    assert 3 <= len(decoder.result.ids) < 10
    assert model.cache_stats.sequences == 0


def test_cancelling_a_long_prompt(model, monkeypatch):
    monkeypatch.setattr(generate, "PREFILL_CHUNK", 10)
    decoder = model.decoder([9] * 100)
    decoder.cancel()
    assert list(decoder) == []
    assert (decoder.result.ids, decoder.result.stop_reason) == ((), "cancelled")
    assert decoder.result.metrics.prefill_tokens == 10


def test_a_reader_who_leaves_gives_the_cache_back(model):
    stream = model.stream("The cat", max_new_tokens=100, ignore_eos=True)
    next(stream)
    assert model.cache_stats.sequences == 1
    stream.close()
    assert model.cache_stats.sequences == 0


def test_a_generation_as_plain_values(model):
    result = model.generate("The <b>cat", max_new_tokens=4)
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain["ids"] == list(result.ids)
    assert plain["metrics"]["decode_rate"] == result.metrics.decode_rate
    page = replace(result, text="<script>")._repr_html_()
    assert "&lt;script&gt;" in page
    assert "<script>" not in page
