"""The KV cache of one sequence: a table of pages in a pool, and how many tokens they hold.

What a kernel reads, all of it plain arrays (layout in `bitnet.cache_pool`):

    cache.keys, cache.values   [n_layer, n_page, n_head_kv, PAGE, head_dim] of the pool
    cache.pages                int32 [pages_for(n_ctx)]: pages of the entries, PAGE each; −1: none yet
    cache.n_past               entries held: entry j is at slot j % PAGE of page pages[j // PAGE]

A step is: `position = cache.reserve(n)`, write keys and values of all layers from entry n_past on (`put`), read them,
`cache.advance(ids)`. Keys are stored after rotary. Entry and position are the same until a sequence slides.

Sliding (`context="slide"`): when the context is full, the page after the first is dropped whole; the first page stays
(attention that finds nothing relevant rests on the first tokens), the others move up by one entry of the table, nothing
is computed again, and positions go on increasing. It happens only when the context is full, never earlier to make room
for a larger batch, so what a token sees depends on its position alone. What a model says after that is not what it
would say with everything in view, and its positions pass those it was trained on.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bitnet.cache_pool import PAGE, KVPool, pages_for
from bitnet.errors import ContextLengthError, UsageError
from bitnet.linear import Float32, round_f16

#: Pages at the beginning that are never dropped.
SINK_PAGES = 1

#: With less, there is no full page between the first and the one being written.
MIN_SLIDING = 3 * PAGE


class KVCache:
    """Keys and values of one sequence of up to `n_ctx` tokens. Not for two threads at once.

    Args:
        pool: Where its pages are.
        n_ctx: Capacity, tokens.
        context: What happens when it is full: `stop` (an error), or `slide`.

    Attributes:
        pages: The page table, int32; −1 where there is no page yet.
        n_past: Tokens held.
        n_dropped: Tokens that slid out.

    Raises:
        ResourceLimitError: The pool has promised its pages to others.
        UsageError: The context is too small to slide.
    """

    def __init__(self, pool: KVPool, n_ctx: int, *, context: Literal["stop", "slide"] = "stop") -> None:
        if context == "slide" and n_ctx < MIN_SLIDING:
            raise UsageError(
                f"a context of {n_ctx} tokens cannot slide",
                where="context",
                remedy=f"`slide` needs at least {MIN_SLIDING} tokens; use `stop`",
            )
        capacity = pages_for(n_ctx)
        pool.promise(capacity)
        self.pool = pool
        self.n_ctx = n_ctx
        self.context = context
        self.pages: NDArray[np.int32] = np.full(capacity, -1, np.int32)
        self.n_past = 0
        self.n_dropped = 0
        self._held: list[int] = []  # the same pages, for the pool
        self._ids: list[int] = []  # of all entries, while they are known
        self._numbers: list[int] = []  # of the entered pages
        self._leave = weakref.finalize(self, pool.abandon, capacity, self._held)
        self._leave.atexit = False

    @property
    def keys(self) -> NDArray[Any]:
        """The pool's keys, [n_layer, n_page, n_head_kv, PAGE, head_dim]."""
        return self.pool.keys

    @property
    def values(self) -> NDArray[Any]:
        """The pool's values, likewise."""
        return self.pool.values

    @property
    def position(self) -> int:
        """Position of the next token."""
        return self.n_past + self.n_dropped

    def make_room(self) -> int:
        """How many tokens may come next (0: the context is full); a full one that slides drops a page first."""
        if self.context == "slide" and self.n_past == self.n_ctx:
            self.pool.release([self._held.pop(SINK_PAGES)])
            self._tabulate()
            self.n_past -= PAGE
            self.n_dropped += PAGE
        return self.n_ctx - self.n_past

    def reserve(self, n_token: int) -> int:
        """Have pages for `n_token` more tokens; their first position.

        Raises:
            ContextLengthError: They do not fit; nothing was changed.
        """
        if self.n_past + n_token > self.n_ctx:
            raise ContextLengthError(
                f"{self.n_past} + {n_token} tokens exceed the context of {self.n_ctx}",
                remedy="shorten the prompt, or ask for fewer tokens",
            )
        while len(self._held) < pages_for(self.n_past + n_token):
            self.pages[len(self._held)] = page = self.pool.take()
            self._held.append(page)
        return self.position

    def put(self, il: int, k: Float32, v: Float32) -> None:
        """Store keys and values [n_token, n_head_kv · head_dim] of layer `il` from entry `n_past` on."""
        n_token, (_, _, n_head_kv, _, head_dim) = len(k), self.keys.shape
        for store, new in ((self.keys, k), (self.values, v)):
            heads = new.reshape(n_token, n_head_kv, head_dim).transpose(1, 0, 2)
            if store.dtype == np.uint16:
                heads = round_f16(heads).view(np.uint16)
            done = 0
            while done < n_token:
                index, slot = divmod(self.n_past + done, PAGE)
                n = min(PAGE - slot, n_token - done)
                store[il, self.pages[index], :, slot : slot + n] = heads[:, done : done + n]
                done += n

    def advance(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> None:
        """Count tokens whose keys and values are there in every layer; full pages of them become known to the pool."""
        known = len(self._ids) == self.n_past and not self.n_dropped
        self.n_past += len(ids)
        if not (known and self.pool.shareable):
            return
        self._ids.extend(int(i) for i in ids)
        for index in range(len(self._numbers), self.n_past // PAGE):
            content = np.array(self._ids[index * PAGE : (index + 1) * PAGE], np.int32)
            before = self._numbers[-1] if self._numbers else 0
            self._numbers.append(self.pool.enter(self._held[index], before, content))

    def reuse(self, ids: Sequence[int]) -> int:
        """Begin with the pages of other sequences that began with the same ids; how many tokens those hold.

        Never all of `ids`: the last one is left to be evaluated. The cache must be empty.
        """
        if not self.pool.shareable:
            return 0
        assert not self._held
        wanted = np.array(ids[: self.n_ctx + 1], np.int32)
        pages, self._numbers = self.pool.find(wanted)
        self._held.extend(pages)
        self._tabulate()
        self.n_past = len(pages) * PAGE
        self._ids = [int(i) for i in wanted[: self.n_past]]
        return self.n_past

    def fork(self, n_ctx: int | None = None, *, context: Literal["stop", "slide"] | None = None) -> KVCache:
        """Another sequence that goes on from here: full pages are shared, the last one is copied if it is part full.

        Args:
            n_ctx: Its capacity; default the same.
            context: What it does when that is full; default the same.
        """
        new = KVCache(self.pool, max(n_ctx or self.n_ctx, self.n_past), context=context or self.context)
        full, rest = divmod(self.n_past, PAGE)
        self.pool.hold(self._held[:full])
        new._held.extend(self._held[:full])
        if rest:
            new._held.append(self.pool.copy(self._held[full]))
        new._tabulate()
        new.n_past, new.n_dropped = self.n_past, self.n_dropped
        new._ids, new._numbers = list(self._ids), list(self._numbers)
        return new

    def truncate(self, n_past: int) -> None:
        """Forget every entry from `n_past` on.

        Raises:
            UsageError: The sequence has slid, and what is asked for lies in its first page.
        """
        n_past = min(self.n_past, max(n_past, 0))
        if self.n_dropped and n_past < SINK_PAGES * PAGE:
            raise UsageError(f"a sequence that has slid cannot go back to {n_past} tokens", where="truncate")
        full, rest = divmod(n_past, PAGE)
        self.pool.release(self._held[full + bool(rest) :])
        del self._held[full + bool(rest) :], self._ids[n_past:], self._numbers[full:]
        if rest:
            self._held[full] = self.pool.writable(self._held[full])
        self._tabulate()
        self.n_past = n_past

    def gather(self, il: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Copies of keys and values of layer `il`, each [n_head_kv, n_past, head_dim] in the pool's type."""
        used = self.pages[: pages_for(self.n_past)]

        def one(store: NDArray[Any]) -> NDArray[Any]:
            heads = store[il][used].transpose(1, 0, 2, 3)
            whole: NDArray[Any] = heads.reshape(heads.shape[0], len(used) * PAGE, heads.shape[3])
            return whole[:, : self.n_past]

        return one(self.keys), one(self.values)

    def close(self) -> None:
        """Give the pages back. A cache that is forgotten does so by itself; a second call does nothing."""
        if self._leave.detach() is not None:
            self.pool.leave(len(self.pages), self._held)
            self._held = []
            self.n_past = self.n_ctx = 0

    def __enter__(self) -> KVCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tabulate(self) -> None:
        self.pages[: len(self._held)] = self._held
        self.pages[len(self._held) :] = -1
