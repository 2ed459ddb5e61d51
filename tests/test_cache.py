"""The KV cache of a sequence: what is put is found in whatever pages; forks, reuse and sliding keep every bit."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from test_config import model_config

from bitnet.cache import MIN_SLIDING, KVCache
from bitnet.cache_pool import PAGE, KVPool, pages_for
from bitnet.config import Numerics
from bitnet.errors import ResourceLimitError, UsageError

CONFIG = model_config(n_layer=2, n_head=4, n_head_kv=2, head_dim=16)


def pool_of(n_page, **numerics):
    return KVPool(CONFIG, Numerics(**numerics), n_page)


def vectors(ids):
    """Keys and values [n_token, n_head_kv · head_dim] that say which token they belong to."""
    k = np.repeat(np.array(ids, np.float32)[:, None], 32, axis=1) + np.linspace(0, 0.5, 32, dtype=np.float32)
    return k, -k


def write(cache, ids):
    """Evaluate `ids`, as a model would."""
    cache.reserve(len(ids))
    for il in range(2):
        cache.put(il, *(v + np.float32(1000 * il) for v in vectors(ids)))
    cache.advance(ids)


def holds(cache, ids):
    """Whether the cache holds exactly the tokens `ids`, in every layer."""
    for il in range(2):
        for found, new in zip(cache.gather(il), vectors(ids), strict=True):
            expected = (new + np.float32(1000 * il)).reshape(len(ids), 2, 16).transpose(1, 0, 2)
            if not np.array_equal(found, expected):
                return False
    return cache.n_past == len(ids)


@pytest.mark.parametrize("kv", ["f32", "f16"])
def test_what_is_put_is_found_by_layer_page_head_and_slot(kv):
    pool = pool_of(3, kv=kv)
    cache = KVCache(pool, 3 * PAGE)
    cache.reserve(PAGE - 2)
    cache.n_past = PAGE - 2
    assert cache.reserve(4) == PAGE - 2
    assert (len(pool.keys), pool.keys.shape[1:]) == (2, (3, 2, PAGE, 16))
    k, v = np.random.default_rng(0).standard_normal((2, 4, 32)).astype(np.float32)
    cache.put(1, k, v)
    for store, new in ((cache.keys, k), (cache.values, v)):
        stored = store.view(np.float16) if kv == "f16" else store
        expected = np.zeros((2, 3, 2, PAGE, 16), np.float16 if kv == "f16" else np.float32)
        for t in range(4):
            page, slot = divmod(PAGE - 2 + t, PAGE)
            for head in range(2):
                expected[1, cache.pages[page], head, slot] = new[t, 16 * head : 16 * head + 16]
        assert np.array_equal(stored, expected)
    assert cache.keys.dtype == (np.uint16 if kv == "f16" else np.float32)
    assert cache.n_past == PAGE - 2  # all layers come first
    assert cache.pages.dtype == np.int32
    assert list(cache.pages[2:]) == [-1]


def test_a_key_beyond_binary16_is_infinite_without_a_warning():
    cache = KVCache(pool_of(1, kv="f16"), 1)
    cache.reserve(1)
    k, v = vectors([3])
    cache.put(0, k * np.float32(1e30), v * np.float32(1e30))
    assert np.isinf(cache.keys[0, cache.pages[0], :, 0].view(np.float16)).all()


def test_the_context_is_a_limit():
    cache = KVCache(pool_of(1), 10)
    assert cache.reserve(10) == 0
    cache.n_past = 8
    assert cache.reserve(2) == 8
    with pytest.raises(ResourceLimitError, match=r"8 \+ 3 tokens exceed the context of 10\n.*shorten the prompt"):
        cache.reserve(3)
    assert (cache.n_past, cache.make_room()) == (8, 2)


@pytest.mark.parametrize("n", [0, 1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 2 * PAGE + 7, 500])
def test_forgetting(n):
    ids = list(range(2 * PAGE + 10))
    pool = pool_of(4)
    cache = KVCache(pool, 4 * PAGE)
    write(cache, ids)
    cache.truncate(n)
    kept = ids[:n]
    assert holds(cache, kept)
    assert pool.stats().used == pages_for(len(kept))
    write(cache, [7, 8, 9])
    assert holds(cache, [*kept, 7, 8, 9])
    assert not holds(cache, [*kept, 7, 8, 8])
    cache.truncate(-1)
    assert holds(cache, [])


def test_what_others_may_read_is_never_written():
    """A full page is known to the pool, so going back into it makes a copy."""
    ids, pool = list(range(PAGE + 5)), pool_of(6)
    first = KVCache(pool, 2 * PAGE)
    write(first, ids)
    first.truncate(10)
    write(first, [500] * 20)
    other = KVCache(pool, 2 * PAGE)
    assert other.reuse(ids) == PAGE
    assert holds(other, ids[:PAGE])
    assert holds(first, ids[:10] + [500] * 20)


def test_a_fork_goes_its_own_way():
    ids, pool = list(range(PAGE + 5)), pool_of(8)
    trunk = KVCache(pool, 2 * PAGE)
    write(trunk, ids)
    branches = [trunk.fork(), trunk.fork(3 * PAGE)]
    assert pool.stats().shared == 1
    assert pool.stats().used == 4  # one that all share, and one each
    for i, branch in enumerate(branches):
        write(branch, [900 + i] * 3)
    write(trunk, [1])
    for i, branch in enumerate(branches):
        assert holds(branch, ids + [900 + i] * 3)
    assert holds(trunk, [*ids, 1])
    assert (branches[0].n_ctx, branches[1].n_ctx) == (2 * PAGE, 3 * PAGE)
    trunk.close()
    assert holds(branches[0], ids + [900] * 3)


def test_full_pages_are_found_by_what_they_hold_and_by_all_before_them():
    pool = pool_of(12)
    ids = [i % 7 for i in range(3 * PAGE)]
    with KVCache(pool, 4 * PAGE) as first:
        write(first, ids[:100])  # in pieces that do not end where pages do
        write(first, [*ids[100:], 1])
    same, longer, other = (KVCache(pool, 3 * PAGE) for _ in range(3))
    assert same.reuse(ids) == 2 * PAGE  # the last token is left to be evaluated
    assert longer.reuse([*ids, 5]) == 3 * PAGE
    assert holds(longer, ids)
    changed = [*ids[: PAGE - 1], 99, *ids[PAGE:], 5]  # pages 1 and 2 hold the same ids, after another beginning
    assert other.reuse(changed) == 0
    stats = pool.stats()
    assert (stats.lookups, stats.hits, stats.hit_tokens, stats.shared) == (3, 2, 5 * PAGE, 2)


def test_reuse_stops_at_the_capacity():
    pool = pool_of(8)
    with KVCache(pool, 3 * PAGE) as first:
        write(first, [4] * 3 * PAGE)
    cache = KVCache(pool, 2 * PAGE)
    assert cache.reuse([4] * 3 * PAGE) == 2 * PAGE


def test_what_depends_on_the_batch_is_not_shared():
    """With roundings of their own for single tokens, a page holds other bits after a decode than after a prefill."""
    pool = pool_of(4, probs="f16_decode")
    with KVCache(pool, 2 * PAGE) as first:
        write(first, [4] * (PAGE + 1))
    assert KVCache(pool, 2 * PAGE).reuse([4] * (PAGE + 1)) == 0
    assert pool.stats().kept == 0
    assert KVPool(CONFIG, Numerics(head="f16_decode"), 1).shareable  # the head leaves nothing behind


def test_tokens_that_nobody_named_are_not_shared():
    pool = pool_of(4)
    cache = KVCache(pool, 2 * PAGE)
    cache.reserve(3)
    cache.n_past = 3  # by hand
    write(cache, [4] * PAGE)
    cache.close()
    assert pool.stats().kept == 0


# --- sliding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 7, PAGE, 1000])
@pytest.mark.parametrize("n_ctx", [MIN_SLIDING, MIN_SLIDING + 10])
def test_sliding_keeps_the_first_page_and_drops_the_next(n_ctx, step):
    ids, pool = list(range(500)), pool_of(8)
    cache = KVCache(pool, n_ctx, context="slide")
    done, most = 0, 0
    while done < len(ids):
        n = min(step, cache.make_room(), len(ids) - done)
        assert cache.reserve(n) == done  # positions go on
        write(cache, ids[done : done + n])
        done += n
        most = max(most, cache.n_past)
    dropped = cache.n_dropped
    assert most == n_ctx  # dropped when it is full, and never earlier
    assert dropped == -(-(len(ids) - n_ctx) // PAGE) * PAGE
    assert holds(cache, ids[:PAGE] + ids[PAGE + dropped :])
    assert pool.stats().used == pages_for(cache.n_past)
    cache.truncate(cache.n_past - 3)
    assert holds(cache, ids[:PAGE] + ids[PAGE + dropped : -3])
    assert cache.position == len(ids) - 3
    with pytest.raises(UsageError, match="slid"):
        cache.truncate(PAGE - 1)
    fork = cache.fork()
    assert (fork.position, fork.context) == (cache.position, "slide")
    assert holds(fork, ids[:PAGE] + ids[PAGE + dropped : -3])


def test_what_was_said_after_sliding_is_not_shared():
    pool = pool_of(4)
    cache = KVCache(pool, 3 * PAGE, context="slide")
    write(cache, [1] * 3 * PAGE)
    assert cache.make_room() == PAGE
    write(cache, [2] * PAGE)
    cache.close()
    other = KVCache(pool, 4 * PAGE)
    assert other.reuse([1] * 3 * PAGE + [2] * PAGE) in (PAGE, 2 * PAGE, 3 * PAGE)  # what is left of the first three
    assert holds(other, [1] * other.n_past)


def test_a_small_context_cannot_slide():
    with pytest.raises(UsageError, match=f"{MIN_SLIDING - 1} tokens cannot slide"):
        KVCache(pool_of(4), MIN_SLIDING - 1, context="slide")


# --- coming and going ------------------------------------------------------------------------------------------------


def test_a_pool_that_is_promised_away_refuses_and_says_so():
    pool = pool_of(3)
    first = KVCache(pool, 2 * PAGE)
    refusal = "128 tokens do not fit in the KV cache of 192, of which 128"
    with pytest.raises(ResourceLimitError, match=refusal) as caught:
        KVCache(pool, 2 * PAGE)
    assert "cache_bytes" in caught.value.remedy
    first.close()
    first.close()
    KVCache(pool, 3 * PAGE)


def test_a_cache_that_is_forgotten_gives_its_pages_back():
    pool = pool_of(2)
    cache = KVCache(pool, 2 * PAGE)
    write(cache, [1] * (PAGE + 1))
    del cache
    gc.collect()
    stats = pool.stats()
    assert (stats.used, stats.kept, stats.free, stats.promised, stats.sequences) == (0, 1, 1, 0, 0)


def test_a_closed_cache_takes_nothing():
    cache = KVCache(pool_of(2), 2 * PAGE)
    cache.close()
    with pytest.raises(ResourceLimitError):
        cache.reserve(1)
