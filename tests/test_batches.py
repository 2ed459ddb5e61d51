"""A batch gives every prompt what it would get alone, whatever it shares with the others."""

from __future__ import annotations

import pytest
from test_generate import MODEL, TEXT, Scripted

import bitnet
from bitnet.batches import generate_batch
from bitnet.cache_pool import PAGE
from bitnet.errors import BitNetError, ResourceLimitError, UsageError
from bitnet.generation_config import GenerationConfig
from bitnet.metrics import Meter


@pytest.fixture(scope="module")
def model():
    return bitnet.load(MODEL, n_threads=1)


PROMPTS = ("One day Anna", "The cat", TEXT * 8, "Tom", TEXT * 8 + " And")


@pytest.mark.parametrize("n_batch", [1, 2, 8])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "top_k": 20, "repetition_penalty": 1.1, "seed": 5}])
def test_a_batch_gives_what_each_prompt_gives_alone(model, n_batch, sampling):
    alone = [bitnet.load(MODEL, n_threads=1).generate(p, max_new_tokens=12, **sampling) for p in PROMPTS]
    together = model.generate_batch(PROMPTS, max_new_tokens=12, n_batch=n_batch, **sampling)
    for ours, theirs in zip(together, alone, strict=True):
        assert (ours.text, ours.ids, ours.prompt_ids) == (theirs.text, theirs.ids, theirs.prompt_ids)
        assert ours.stop_reason == theirs.stop_reason
        assert 1 <= ours.metrics.batch <= n_batch
    assert max(g.metrics.batch for g in together) == min(n_batch, len(PROMPTS))
    assert len({g.ids for g in together}) == len(PROMPTS)
    assert model.cache_stats.sequences == 0


def test_prompts_of_a_batch_share_their_beginning():
    model = bitnet.load(MODEL, n_threads=1)
    _, _, first, _, second = model.generate_batch(PROMPTS, max_new_tokens=2)
    assert (first.metrics.cached_tokens, second.metrics.cached_tokens) == (0, PAGE)


def test_a_batch_larger_than_the_cache_goes_through_it_in_turn():
    one = bitnet.load(MODEL).cache_stats.page_bytes
    model = bitnet.load(MODEL, cache_bytes=2 * one, n_threads=1)
    prompts = [[i + 1, i + 2] for i in range(7)]
    found = model.generate_batch(prompts, max_new_tokens=PAGE - 2, ignore_eos=True)
    assert [g.metrics.batch for g in found[:2]] == [2, 2]
    wide = bitnet.load(MODEL, n_threads=1).generate_batch(prompts, max_new_tokens=PAGE - 2, ignore_eos=True)
    assert [g.ids for g in found] == [g.ids for g in wide]
    with pytest.raises(ResourceLimitError, match="192 tokens do not fit in the KV cache of 128"):
        model.generate_batch([[1] * 150], max_new_tokens=5)
    assert model.cache_stats.promised == 0


def test_a_batch_names_the_prompt_that_cannot_be_continued(model):
    n_ctx = model.config.n_ctx
    passes = model.network.backend.ledger.passes
    for prompts, error, what in (
        (["The", [1] * n_ctx], ResourceLimitError, f"has {n_ctx} tokens"),
        (["The", []], UsageError, "no tokens"),
        (["The", [10**6]], UsageError, "outside the vocabulary"),
    ):
        with pytest.raises(error, match=what) as caught:
            model.generate_batch(prompts)
        assert caught.value.where == "prompts[1]"
    assert model.network.backend.ledger.passes == passes
    assert model.generate_batch([]) == []
    for bad in ("The cat", ["a", "b"]):
        with pytest.raises(UsageError):
            (model.generate_batch if isinstance(bad, str) else model.generate)(bad)
    with pytest.raises(UsageError, match="n_batch is 0"):
        model.generate_batch(["The"], n_batch=0)


def test_an_error_in_the_middle_of_a_batch_gives_everything_back(model):
    tokenizer = model.tokenizer
    script = tokenizer.encode(TEXT, add_special=False)

    class Broken(Scripted):
        def step(self, batch, meters, counts=None):
            if len(batch) > 1:
                raise BitNetError("it broke")
            return super().step(batch, meters, counts)

    broken = Broken(script, n_vocab=tokenizer.n_vocab)
    with pytest.raises(BitNetError, match="it broke"):
        generate_batch(broken, tokenizer, [(1,), (2,)], GenerationConfig(), n_batch=2, meters=[Meter(), Meter()])
    assert broken.pool.stats().sequences == 0
