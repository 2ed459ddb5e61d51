"""A loaded model: prompts, numbers, and what it says about itself."""

from __future__ import annotations

import tracemalloc

import golden_models
import numpy as np
import pytest
from test_generate import MODEL, TEXT

import bitnet
from bitnet import bitnet_model, runtime
from bitnet.cache_pool import PAGE
from bitnet.errors import ResourceLimitError, UsageError


@pytest.fixture(scope="module")
def model():
    return bitnet.load(MODEL, n_threads=1)


def test_one_prompt_in_three_forms(model):
    ids = model.encode("The cat")
    for prompt in (list(ids), np.array(ids), ids):
        assert model.encode(prompt) == ids
        assert model.generate(prompt, max_new_tokens=3).ids == model.generate("The cat", max_new_tokens=3).ids
    chat = model.generate([{"role": "user", "content": "Where is the cat?"}], max_new_tokens=3)
    assert "Where is the cat?" in model.tokenizer.decode(chat.prompt_ids)


def test_several_prompts_are_not_one(model):
    with pytest.raises(UsageError, match=r"not texts\n.*generate_batch"):
        model.generate(["The cat", "The dog"])
    with pytest.raises(UsageError, match="one text"):
        model.generate_batch("The cat")
    first, second = model.generate_batch([["The cat"][0], list(model.encode("Tom"))], max_new_tokens=3)
    assert first.prompt_ids == model.encode("The cat")
    assert second.prompt_ids == model.encode("Tom")


@pytest.mark.parametrize("ids", [[], [-1], [10**6], [1.5], [None]])
def test_what_is_no_prompt(model, ids):
    for call in (model.generate, model.logits, model.embed, model.prefill):
        with pytest.raises(UsageError):
            call(ids)


def test_a_prompt_is_a_text_ids_or_messages(model):
    calls = (model.generate, model.logits, model.embed, model.prefill, lambda p: model.generate_batch(["a", p]))
    for call in calls:
        for prompt in (None, 5, np.array(3), {1, 2}):
            with pytest.raises(UsageError, match=r"the prompt is .*, not a text, token ids or chat messages"):
                call(prompt)
        with pytest.raises(UsageError, match=r"the prompt is b'One'.*\n.*decode it"):
            call(b"One")
        with pytest.raises(UsageError, match=r"a single message, not a list of messages\n.*put it in a list"):
            call({"role": "user", "content": "One"})
    assert model.encode(iter([1, 2])) == (1, 2)


def test_prompts_come_in_any_order_of_things(model):
    [one] = model.generate_batch(iter(["The"]), max_new_tokens=2)
    assert one.ids == model.generate("The", max_new_tokens=2).ids
    for prompts in (None, 5, b"ab", {"role": "user"}):
        with pytest.raises(UsageError, match=r"prompts is .*, not several prompts"):
            model.generate_batch(prompts)
    for n_batch in (1.5, "2", True):
        with pytest.raises(UsageError, match=r"n_batch is .*\n  hint: a whole number, 1 to 1024"):
            model.generate_batch(["The"], n_batch=n_batch)
    assert len(model.generate_batch(["The"], n_batch=np.int64(1), max_new_tokens=1)) == 1


def test_a_config_is_a_config(model):
    with model.prefill("The") as session:
        for call in (model.generate, lambda p, c: model.generate_batch([p], c), session.generate, session.decoder):
            for config in ({"temperature": 1}, "greedy", 0):
                with pytest.raises(UsageError, match=r"config is .*\n.*bitnet.GenerationConfig, or its fields by name"):
                    call("The", config)


def test_settings_take_the_place_of_the_configs(model):
    config = bitnet.GenerationConfig.creative(max_new_tokens=3, seed=1)
    assert len(model.generate("The", config, ignore_eos=True).ids) == 3
    assert len(model.generate("The", config, max_new_tokens=5, ignore_eos=True).ids) == 5
    with pytest.raises(UsageError, match="unknown field 'max_tokens'"):
        model.generate("The", max_tokens=5)


# --- numbers -------------------------------------------------------------------------------------------------------


def test_logits_of_a_text_are_those_of_its_ids(model):
    assert np.array_equal(model.logits("The cat"), model.logits(model.encode("The cat")))


@pytest.mark.parametrize("name", golden_models.NAMES)
def test_states_are_what_the_head_is_given(name):
    model = bitnet.load(golden_models.model(name), n_threads=1)
    ids, seen = (3, 1, 4, 1, 5, 9, 2, 6), {}
    net = model.network
    net.forward(ids, net.new_cache(8), tap=lambda tap, layer, value: seen.setdefault((tap, layer), value))
    states = model.embed(ids)
    assert states.dtype == np.float32
    assert np.array_equal(states, seen["result_norm", -1])
    assert np.array_equal(model.embed(ids, "last"), states[-1])
    # float64 sums of eight float32 are exact to far less than half a unit of the last place
    assert np.array_equal(model.embed(ids, pool="mean"), (states.astype(np.float64).sum(axis=0) / 8).astype(np.float32))
    assert not np.array_equal(model.embed(ids[::-1]), states)


def test_a_long_prompt_is_embedded_in_chunks(model, monkeypatch):
    whole = model.embed(TEXT)
    monkeypatch.setattr(bitnet_model, "PREFILL_CHUNK", 3)
    assert np.array_equal(model.embed(TEXT), whole)
    with pytest.raises(UsageError, match="pool is 'max'"):
        model.embed(TEXT, pool="max")


def test_what_does_not_fit_is_refused_everywhere(model, monkeypatch):
    n_ctx = model.config.n_ctx
    calls = (model.logits, model.embed, model.prefill, model.generate)
    for call in calls:
        with pytest.raises(ResourceLimitError, match=f"the prompt has {n_ctx + 1} tokens; .* context is {n_ctx}"):
            call([1] * (n_ctx + 1))
    assert model.logits([1] * n_ctx).shape == (n_ctx, model.config.n_vocab)
    monkeypatch.setenv("BITNET_MEMORY_LIMIT", "1MB")
    for call in calls[:2]:
        with pytest.raises(ResourceLimitError, match=r"BITNET_MEMORY_LIMIT: the results for 9 tokens take \d+ MB"):
            call([1] * 9)


def test_room_is_needed_for_every_logit(model, monkeypatch):
    asked = []
    monkeypatch.setattr(runtime, "check_room", lambda n_bytes, *_: asked.append(n_bytes))
    for n in (1, 65):
        assert asked == []
        found = model.logits([1] * n)
        assert asked.pop() >= found.nbytes + model.cache_stats.page_bytes * -(-n // PAGE)


@pytest.mark.parametrize("call", ["logits", "embed"])
def test_room_is_needed_for_what_a_pass_makes(model, monkeypatch, call):
    asked = []
    monkeypatch.setattr(runtime, "check_room", lambda n_bytes, *_: asked.append(n_bytes))
    run = getattr(model, call)
    run([1] * 400)  # compiled by now
    tracemalloc.start()
    run([1] * 500)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= asked.pop() <= 1.5 * peak


# --- what it is ----------------------------------------------------------------------------------------------------


def test_it_is_closed_at_the_end_of_a_block():
    with bitnet.load(MODEL, n_threads=1) as model:
        assert model.generate("The", max_new_tokens=2).metrics.load_seconds > 0
        stats = model.cache_stats
        assert (stats.used, stats.sequences) == (0, 0)
    with pytest.raises(UsageError, match="closed"):
        model.generate("The")


def test_options_are_those_of_load():
    import inspect

    options = set(inspect.signature(bitnet.load).parameters) - {"path"}
    assert options == set(bitnet_model.LoadOptions.__annotations__)
