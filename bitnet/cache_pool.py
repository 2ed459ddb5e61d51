"""The memory of all KV caches of a model: two arrays cut into pages, and the account of who holds which page.

    keys, values   [n_layer, n_page, n_head_kv, PAGE, head_dim], C order; float32, or binary16 as uint16 (`Numerics.kv`)

A page holds PAGE consecutive tokens of one sequence in every layer. PAGE is a multiple of 16, so that the sixteen lanes
in which `attention` sums are the same whether a sequence lies in one piece or in many. Memory is committed by the
system when a page is first written, so the arrays cost nothing before that; pages that were used are used again first.

A full page whose tokens are known is entered in an index by the exact ids it holds and by the page before it, back to
position 0. A later sequence that begins with the same ids takes those pages instead of computing them: they hold the
same bits, because no result depends on batching. An entered page is never written again. When nobody holds it any
longer it is kept, until its place is needed or more than `max_kept` are; then the least recently used goes first.

Room is promised when a sequence is opened (`promise`), so no sequence fails half way for lack of pages.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import count
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.config import ModelConfig, Numerics
from bitnet.errors import ResourceLimitError
from bitnet.kernels.alignment import aligned

#: Tokens of a page.
PAGE = 64

#: What identifies the content of a page: the entry of the page before it (0: none), and the bytes of its int32 ids.
_Content = tuple[int, bytes]


def pages_for(n_token: int) -> int:
    """Pages that `n_token` tokens take."""
    return -(-n_token // PAGE)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStats:
    """The state of a pool, and what it did so far.

    Attributes:
        pages: All pages of the pool.
        used: Pages that a sequence holds.
        shared: Those of them that several hold.
        kept: Pages nobody holds, whose tokens are remembered.
        free: The rest.
        promised: Pages that open sequences may still come to hold, with those they do; shared ones count for each.
        page_tokens: Tokens of a page.
        page_bytes: Bytes of a page, keys and values of all layers.
        bytes: Bytes of the whole pool; the system commits those pages that were written.
        sequences: Open sequences.
        lookups: How often a prompt's beginning was looked for.
        hits: How often it was found.
        hit_tokens: Tokens that were found instead of computed.
        evictions: Remembered pages that were given up.
    """

    pages: int
    used: int
    shared: int
    kept: int
    free: int
    promised: int
    page_tokens: int
    page_bytes: int
    bytes: int
    sequences: int
    lookups: int
    hits: int
    hit_tokens: int
    evictions: int

    def to_dict(self) -> dict[str, int]:
        """As plain numbers."""
        return asdict(self)


class KVPool:
    """Pages, and who holds them. Every method may be called from any thread.

    Args:
        config: The model's shape.
        numerics: `kv` gives the type. With roundings that differ between prefill and decode (`f16_decode`), what a
            token leaves behind depends on how it was evaluated, so no page is entered in the index.
        n_page: How many pages.
        max_kept: At most this many pages are kept for nobody; default all.

    Raises:
        ResourceLimitError: The system has no room for the arrays.
    """

    def __init__(self, config: ModelConfig, numerics: Numerics, n_page: int, *, max_kept: int | None = None) -> None:
        shape = (config.n_layer, n_page, config.n_head_kv, PAGE, config.head_dim)
        dtype = np.dtype(np.uint16 if numerics.kv == "f16" else np.float32)
        self.page_bytes = page_bytes(config, numerics)
        try:
            self.keys: NDArray[Any] = aligned(shape, dtype, zeros=True)
            self.values: NDArray[Any] = aligned(shape, dtype, zeros=True)
        except (MemoryError, ValueError) as error:  # numpy: more than an array may have
            raise ResourceLimitError(
                f"a KV cache of {n_page * PAGE} tokens needs {n_page * self.page_bytes / 1e9:.1f} GB",
                remedy="ask for a shorter context, or give the cache fewer bytes",
            ) from error
        self.shareable = numerics.probs != "f16_decode"
        self.max_kept = n_page if max_kept is None else max_kept
        self._holders = [0] * n_page
        self._free = list(range(n_page - 1, -1, -1))  # a stack: what was used last is used first
        self._kept: OrderedDict[int, None] = OrderedDict()  # the longest unused first
        self._index: dict[_Content, int] = {}
        self._entries: dict[int, tuple[int, _Content]] = {}  # page → number of its entry, content
        self._numbers = count(1)
        self._abandoned: deque[tuple[int, list[int]]] = deque()
        self._promised = self._sequences = self._lookups = self._hits = self._hit_tokens = self._evictions = 0
        self._lock = RLock()

    @property
    def n_page(self) -> int:
        """How many pages there are."""
        return len(self._holders)

    @property
    def n_free(self) -> int:
        """Pages that may still be promised."""
        with self._lock:
            self._collect()
            return self.n_page - self._promised

    def stats(self) -> CacheStats:
        """The state now."""
        with self._lock:
            self._collect()
            used = sum(1 for n in self._holders if n)
            return CacheStats(
                pages=self.n_page,
                used=used,
                shared=sum(1 for n in self._holders if n > 1),
                kept=len(self._kept),
                free=len(self._free),
                promised=self._promised,
                page_tokens=PAGE,
                page_bytes=self.page_bytes,
                bytes=self.n_page * self.page_bytes,
                sequences=self._sequences,
                lookups=self._lookups,
                hits=self._hits,
                hit_tokens=self._hit_tokens,
                evictions=self._evictions,
            )

    # --- sequences come and go ----------------------------------------------------------------------------------------

    def promise(self, n_page: int) -> None:
        """Set `n_page` pages aside for a sequence. Raises `ResourceLimitError` if the others' promises forbid it."""
        with self._lock:
            self._collect()
            if self._promised + n_page > self.n_page:
                raise ResourceLimitError(
                    f"{n_page * PAGE} tokens do not fit in the KV cache of {self.n_page * PAGE}, of which "
                    f"{self._promised * PAGE} are promised to {self._sequences} other sequences",
                    remedy="ask for fewer tokens, run fewer sequences at once, or load the model with more cache_bytes",
                )
            self._promised += n_page
            self._sequences += 1

    def leave(self, promised: int, pages: Sequence[int]) -> None:
        """A sequence is over: its promise and its pages are given back."""
        with self._lock:
            self._promised -= promised
            self._sequences -= 1
            self.release(pages)

    def abandon(self, promised: int, pages: list[int]) -> None:
        """As `leave`, of a sequence that was collected as garbage, perhaps in the middle of any of these methods."""
        self._abandoned.append((promised, pages))

    def _collect(self) -> None:
        while self._abandoned:
            self.leave(*self._abandoned.popleft())

    # --- pages --------------------------------------------------------------------------------------------------------

    def take(self) -> int:
        """An empty page for one holder. Only within a promise, which is why there always is one."""
        with self._lock:
            self._collect()
            if not self._free:
                self._forget()
            page = self._free.pop()
            self._holders[page] = 1
            return page

    def hold(self, pages: Sequence[int]) -> None:
        """One more holder for each."""
        with self._lock:
            for page in pages:
                self._holders[page] += 1
                self._kept.pop(page, None)

    def release(self, pages: Sequence[int]) -> None:
        """One holder fewer for each; the last pages of a sequence are the first to be forgotten."""
        with self._lock:
            for page in reversed(pages):
                self._holders[page] -= 1
                if self._holders[page]:
                    continue
                if page in self._entries:
                    self._kept[page] = None
                else:
                    self._free.append(page)
            while len(self._kept) > self.max_kept:
                self._forget()

    def writable(self, page: int) -> int:
        """The page itself if its one holder may write it, otherwise a copy in its place."""
        with self._lock:
            if self._holders[page] == 1 and page not in self._entries:
                return page
            self.release((page,))  # first, so that the promise covers the copy; should it be taken again, all is there
            copy = self.take()
            self.keys[:, copy] = self.keys[:, page]
            self.values[:, copy] = self.values[:, page]
            return copy

    def copy(self, page: int) -> int:
        """A new page with the same content."""
        with self._lock:
            copy = self.take()
            self.keys[:, copy] = self.keys[:, page]
            self.values[:, copy] = self.values[:, page]
            return copy

    def _forget(self) -> None:
        page, _ = self._kept.popitem(last=False)
        _, content = self._entries.pop(page)
        del self._index[content]
        self._free.append(page)
        self._evictions += 1

    # --- the index ----------------------------------------------------------------------------------------------------

    def enter(self, page: int, before: int, ids: NDArray[np.int32]) -> int:
        """Remember what a full page holds; the number of its entry.

        If another page with this content is entered already, its number is given, and this page stays out.

        Args:
            page: Held by the caller.
            before: Number of the page before it, 0 for the first.
            ids: [PAGE] token ids.
        """
        content = before, ids.tobytes()
        with self._lock:
            other = self._index.get(content)
            if other is not None:
                return self._entries[other][0]
            number = next(self._numbers)
            self._index[content] = page
            self._entries[page] = number, content
            return number

    def find(self, ids: NDArray[np.int32]) -> tuple[list[int], list[int]]:
        """Pages that hold the longest known beginning of `ids`, held for the caller, and the numbers of their entries.

        The last id is never part of it: evaluating it is what gives the logits.
        """
        pages: list[int] = []
        numbers: list[int] = []
        with self._lock:
            self._collect()
            self._lookups += 1
            for begin in range(0, len(ids) - PAGE, PAGE):
                before = numbers[-1] if numbers else 0
                page = self._index.get((before, ids[begin : begin + PAGE].tobytes()))
                if page is None:
                    break
                pages.append(page)
                numbers.append(self._entries[page][0])
            self.hold(pages)
            self._hits += bool(pages)
            self._hit_tokens += len(pages) * PAGE
        return pages, numbers

    def forget_all(self) -> None:
        """Give up every page that is kept for nobody."""
        with self._lock:
            self._collect()
            while self._kept:
                self._forget()


def page_bytes(config: ModelConfig, numerics: Numerics) -> int:
    """Bytes of a page: keys and values of all layers."""
    width = 2 if numerics.kv == "f16" else 4
    return 2 * config.n_layer * config.n_head_kv * PAGE * config.head_dim * width
