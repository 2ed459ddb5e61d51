"""Prefill, decode, stop: on a network that says what it is told, and on a real one."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_config import model_config

import bitnet
from bitnet import generate
from bitnet.config import GenerationConfig
from bitnet.errors import BitNetError, ResourceLimitError, UsageError
from bitnet.generate import Decoder, Timing, prefill

MODEL = Path(__file__).parents[1] / "fixtures" / "models" / "tiny-relu2.i2_s.gguf"
TEXT = " Tom was a kind boy. The cat sat by the house."


@pytest.fixture(scope="module")
def model():
    return bitnet.load(MODEL, n_threads=1)


@pytest.fixture(scope="module")
def tokenizer(model):
    return model.tokenizer


class Scripted:
    """A network that makes `script` its most likely continuation, and notes every call."""

    def __init__(self, script, *, n_vocab, n_ctx=64):
        self.config = model_config(n_vocab=n_vocab, n_ctx=n_ctx)
        self.script = list(script)
        self.calls, self.capacities = [], []

    def new_cache(self, n_ctx):
        self.capacities.append(n_ctx)

    def forward(self, ids, cache, *, last_only):
        assert last_only
        self.calls.append(tuple(ids))
        logits = np.zeros((1, self.config.n_vocab), np.float32)
        logits[0, self.script[len(self.calls) - 1]] = 9
        return logits


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
    assert (result.timing.prefill_tokens, result.timing.decode_tokens, result.timing.decode_rate) == (0, 0, 0.0)


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
    timing = decoder.result.timing
    assert (timing.prefill_tokens, timing.decode_tokens) == (3, 4)
    assert timing.prefill_seconds > 0
    assert 0 < timing.decode_seconds <= time.perf_counter() - began - 0.05 * slept
    assert timing.decode_rate == 4 / timing.decode_seconds
    assert Timing(prefill_tokens=3, prefill_seconds=1, decode_tokens=0, decode_seconds=0).decode_rate == 0.0


def test_logits_that_are_not_numbers_stop_it_with_an_error(tokenizer):
    class Broken(Scripted):
        def forward(self, ids, cache, *, last_only):
            return np.full((1, self.config.n_vocab), np.nan, np.float32)

    broken = Broken([], n_vocab=tokenizer.n_vocab)
    with pytest.raises(BitNetError, match="no logit is a finite number"):
        list(Decoder(broken, tokenizer, (1,), GenerationConfig()))


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
    cache = model.network.new_cache(len(ids))
    assert np.array_equal(prefill(model.network, ids, cache), model.logits(ids)[-1])
    assert cache.n_past == len(ids)


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
