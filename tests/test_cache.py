"""The KV cache stores what it is given where it belongs, and refuses what does not fit."""

from __future__ import annotations

import numpy as np
import pytest
from test_config import model_config

from bitnet.cache import KVCache
from bitnet.config import Numerics
from bitnet.errors import ResourceLimitError

CONFIG = model_config(n_layer=2, n_head=4, n_head_kv=2, head_dim=16)


def values(n_token, seed=0):
    return np.random.default_rng(seed).standard_normal((2, n_token, 32)).astype(np.float32)


@pytest.mark.parametrize("kv", ["f32", "f16"])
def test_what_is_put_is_found_by_layer_head_and_position(kv):
    cache = KVCache(CONFIG, Numerics(kv=kv), 10)
    cache.n_past = 3
    k, v = values(4)
    cache.put(1, k, v)
    for store, new in ((cache.keys, k), (cache.values, v)):
        stored = store.view(np.float16) if kv == "f16" else store
        expected = np.zeros((2, 2, 10, 16), np.float16 if kv == "f16" else np.float32)
        for t in range(4):
            for head in range(2):
                expected[1, head, 3 + t] = new[t, 16 * head : 16 * head + 16]
        assert np.array_equal(stored, expected)
    assert cache.keys.dtype == (np.uint16 if kv == "f16" else np.float32)
    assert cache.n_past == 3  # all layers come first
    assert cache.n_ctx == 10


def test_a_key_beyond_binary16_is_infinite_without_a_warning():
    cache = KVCache(CONFIG, Numerics(kv="f16"), 1)
    cache.put(0, *(values(1) * np.float32(1e30)))
    assert np.isinf(cache.keys[0].view(np.float16)).all()


def test_the_context_is_a_limit():
    cache = KVCache(CONFIG, Numerics(), 10)
    assert cache.reserve(10) == 0
    cache.n_past = 8
    assert cache.reserve(2) == 8
    with pytest.raises(ResourceLimitError, match=r"8 \+ 3 tokens exceed the context of 10\n.*shorten the prompt"):
        cache.reserve(3)
    assert cache.n_past == 8


def test_forgetting():
    cache = KVCache(CONFIG, Numerics(), 10)
    cache.n_past = 8
    for asked, left in ((9, 8), (5, 5), (-1, 0)):
        cache.truncate(asked)
        assert cache.n_past == left


def test_a_cache_that_does_not_fit_in_memory_says_how_large_it_would_be(monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr(np, "zeros", full)
    with pytest.raises(ResourceLimitError, match=r"16777216 tokens needs 8\.6 GB") as caught:
        KVCache(CONFIG, Numerics(), 1 << 24)
    assert caught.value.exit_code == 6
