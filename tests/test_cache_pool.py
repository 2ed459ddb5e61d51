"""The pool against a naive account of who holds what: no page lost, none held by two who write, no wrong content."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from test_cache import CONFIG, holds, write
from test_config import model_config

from bitnet.cache import KVCache
from bitnet.cache_pool import PAGE, KVPool, page_bytes, pages_for
from bitnet.config import Numerics
from bitnet.errors import ResourceLimitError

PAGES = 12
LENGTHS = st.sampled_from([1, 5, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE])
FEW = settings(max_examples=40, stateful_step_count=30, deadline=None)


class Sequences(RuleBasedStateMachine):
    """Sequences come, grow, fork, go back, slide and leave; each is compared with a plain list of its tokens."""

    def __init__(self):
        super().__init__()
        self.pool = KVPool(CONFIG, Numerics(), PAGES, max_kept=5)
        self.live = []  # [cache, tokens in view]
        self.said = [[]]  # every sequence there ever was, up to its first slide

    def pick(self, data):
        return data.draw(st.sampled_from(self.live))

    @rule(data=st.data(), n_page=st.integers(1, 5), context=st.sampled_from(["stop", "slide"]))
    def open(self, data, n_page, context):
        if context == "slide":
            n_page = max(n_page, 3)
        promised = sum(len(cache.pages) for cache, _ in self.live)
        if promised + n_page > PAGES:
            with pytest.raises(ResourceLimitError):
                KVCache(self.pool, n_page * PAGE, context=context)
            return
        cache = KVCache(self.pool, n_page * PAGE, context=context)
        ids = [*data.draw(st.sampled_from(self.said)), data.draw(st.integers(0, 2))]
        n = cache.reuse(ids)
        assert n % PAGE == 0
        assert n < len(ids)
        self.live.append([cache, ids[:n]])

    @precondition(lambda self: self.live)
    @rule(data=st.data(), n=LENGTHS, token=st.integers(0, 2))
    def grow(self, data, n, token):
        sequence = self.pick(data)
        cache, ids = sequence
        before = cache.n_dropped
        n = min(n, cache.make_room())
        if cache.n_dropped > before:
            del ids[PAGE : 2 * PAGE]
        if n:
            write(cache, [token] * n)
            ids += [token] * n
            if not cache.n_dropped:
                self.said.append(list(ids))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def fork(self, data):
        cache, ids = self.pick(data)
        if sum(len(c.pages) for c, _ in self.live) + len(cache.pages) <= PAGES:
            self.live.append([cache.fork(), list(ids)])

    @precondition(lambda self: self.live)
    @rule(data=st.data(), n=st.integers(0, 5 * PAGE))
    def truncate(self, data, n):
        cache, ids = self.pick(data)
        if not cache.n_dropped or n >= PAGE:
            cache.truncate(n)
            del ids[n:]

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def close(self, data):
        sequence = self.pick(data)
        self.live = [other for other in self.live if other is not sequence]
        sequence[0].close()

    @invariant()
    def every_sequence_holds_its_own_tokens(self):
        for cache, ids in self.live:
            assert holds(cache, ids)

    @invariant()
    def the_account_is_right(self):
        held = [page for cache, _ in self.live for page in cache.pages if page >= 0]
        stats = self.pool.stats()
        assert stats.used == len(set(held))
        assert stats.shared == sum(held.count(page) > 1 for page in set(held))
        assert stats.used + stats.kept + stats.free == PAGES
        assert stats.kept <= 5
        assert stats.promised == sum(len(cache.pages) for cache, _ in self.live)
        assert stats.sequences == len(self.live)
        for cache, ids in self.live:
            assert sum(page >= 0 for page in cache.pages) == pages_for(len(ids))

    @invariant()
    def the_last_page_has_one_holder_unless_it_is_full(self):
        held = [page for cache, _ in self.live for page in cache.pages if page >= 0]
        for cache, ids in self.live:
            if len(ids) % PAGE:
                assert held.count(cache.pages[len(ids) // PAGE]) == 1

    def teardown(self):
        for cache, _ in self.live:
            cache.close()
        self.pool.forget_all()
        stats = self.pool.stats()
        assert (stats.free, stats.used, stats.kept, stats.promised) == (PAGES, 0, 0, 0)


TestSequences = Sequences.TestCase
TestSequences.settings = FEW


class Careless(KVPool):
    """Writes where others read."""

    def writable(self, page):
        return page


class Forgetful(KVPool):
    """Looks at a page's own ids alone."""

    def enter(self, page, before, ids):
        return super().enter(page, 0, ids)


def test_a_pool_that_shares_wrongly_is_noticed(monkeypatch):
    for liar in (Careless, Forgetful):
        monkeypatch.setitem(Sequences.__init__.__globals__, "KVPool", liar)
        machine = Sequences()
        with pytest.raises(AssertionError):  # noqa: PT012  what two liars break, each by its own step
            a = KVCache(machine.pool, 3 * PAGE)
            write(a, [1] * PAGE + [2] * PAGE)
            b = KVCache(machine.pool, 3 * PAGE)
            expected = [2] * PAGE
            n = b.reuse([*expected, 1])
            a.truncate(5)
            write(a, [3] * 10)
            c = KVCache(machine.pool, 3 * PAGE)
            m = c.reuse([1] * (PAGE + 1))
            machine.live = [[b, expected[:n]], [c, [1] * m]]
            assert n in (0, PAGE)
            machine.every_sequence_holds_its_own_tokens()
            assert n == 0


def test_the_least_recently_used_pages_go_first():
    pool = KVPool(CONFIG, Numerics(), 4)
    for token in (1, 2):
        with KVCache(pool, 2 * PAGE) as cache:
            write(cache, [token] * 2 * PAGE)
    with KVCache(pool, 2 * PAGE) as cache:
        assert cache.reuse([1] * (2 * PAGE)) == PAGE  # used again: younger than those of 2
    with KVCache(pool, PAGE) as cache:
        write(cache, [3] * PAGE)
    assert pool.stats().evictions == 1

    def known(token):
        with KVCache(pool, 3 * PAGE) as cache:
            return cache.reuse([token] * (3 * PAGE))

    assert (known(3), known(1), known(2)) == (PAGE, PAGE, 2 * PAGE)  # gone: the second page of 1, not used again
    with KVCache(pool, 2 * PAGE) as cache:
        write(cache, [4] * (PAGE + 1))
    assert [known(token) for token in (4, 3, 1, 2)] == [PAGE, 0, 0, 2 * PAGE]


def test_only_so_many_are_kept():
    pool = KVPool(CONFIG, Numerics(), 8, max_kept=2)
    with KVCache(pool, 4 * PAGE) as cache:
        write(cache, [1] * 4 * PAGE)
    stats = pool.stats()
    assert (stats.kept, stats.free, stats.evictions) == (2, 6, 2)
    with KVCache(pool, 4 * PAGE) as cache:
        assert cache.reuse([1] * 4 * PAGE) == 2 * PAGE  # the first ones


def test_pages_that_were_used_are_used_again_first():
    """So that the system commits no more memory than was ever in use at once."""
    pool = KVPool(CONFIG, Numerics(), 100, max_kept=0)
    seen = set()
    for token in range(20):
        with KVCache(pool, 2 * PAGE) as cache:
            write(cache, [token] * 2 * PAGE)
            seen.update(cache.pages)
    assert len(seen) == 2


@pytest.mark.parametrize(("kv", "width"), [("f32", 4), ("f16", 2)])
def test_its_size_is_stated(kv, width):
    numerics = Numerics(kv=kv)
    pool = KVPool(CONFIG, numerics, 3)
    assert page_bytes(CONFIG, numerics) == 2 * 2 * 2 * PAGE * 16 * width
    stats = pool.stats()
    assert stats.bytes == pool.keys.nbytes + pool.values.nbytes == 3 * stats.page_bytes
    assert (stats.pages, stats.page_tokens) == (3, PAGE)
    assert all(type(value) is int for value in stats.to_dict().values())


@pytest.mark.parametrize("error", [MemoryError, ValueError])
def test_a_pool_that_does_not_fit_in_memory_says_how_large_it_would_be(monkeypatch, error):
    def full(*_):
        raise error

    monkeypatch.setattr(np, "zeros", full)
    with pytest.raises(ResourceLimitError, match=r"16777216 tokens needs 8\.6 GB") as caught:
        KVPool(CONFIG, Numerics(), (1 << 24) // PAGE)
    assert caught.value.exit_code == 6


def test_a_page_is_a_multiple_of_the_sixteen_lanes():
    assert PAGE % 16 == 0


def test_many_threads_share_it():
    pool = KVPool(model_config(n_layer=2, n_head=4, n_head_kv=2, head_dim=16), Numerics(), 16, max_kept=3)
    wrong = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(60):
            ids = [int(rng.integers(3))] * int(rng.integers(1, 2 * PAGE + 2))
            cache = KVCache(pool, 3 * PAGE)
            n = cache.reuse(ids)
            write(cache, ids[n:])
            if not holds(cache, ids):
                wrong.append(ids)
            if rng.random() < 0.7:
                cache.close()  # the others are collected as garbage

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    pool.forget_all()
    assert pool.stats().free == pool.n_page
