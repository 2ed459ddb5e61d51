"""What all calls on one model share: the network, the pool of pages, and whose turn it is.

One pass runs at a time, and calls from several threads take turns pass by pass; each has a cache of its own, so none
sees another, and what it says does not depend on who else is there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import Literal

import psutil

from bitnet.arguments import whole_number
from bitnet.cache import KVCache
from bitnet.cache_pool import PAGE, KVPool, page_bytes, pages_for
from bitnet.config import ModelConfig
from bitnet.errors import ContextLengthError, ResourceLimitError, UsageError
from bitnet.limits import MEMORY, check_room, memory_limit
from bitnet.linear import Float32
from bitnet.lookahead import PassCost
from bitnet.metrics import Meter
from bitnet.model import Candidates, Network
from bitnet.turns import Turns

#: Full contexts that the pool holds by default, and asynchronous calls that run at once, so that each finds room.
CONTEXTS = 4


@dataclass(slots=True)
class Runtime:
    """A network, ready to be called from several threads.

    Attributes:
        network: The graph.
        cache_bytes: Size of the pool; default by `pool_pages`.
        load_seconds: What opening the model took, for the metrics.
        closed: Whether it was closed.
        pass_cost: What passes of several tokens were seen to cost.
    """

    network: Network
    cache_bytes: int | None = None
    load_seconds: float = 0.0
    closed: bool = False
    pass_cost: PassCost = field(default_factory=PassCost)
    _turns: Turns = field(default_factory=Turns)
    _lock: Lock = field(default_factory=Lock)
    _pool: KVPool | None = None
    _executors: dict[tuple[int, str], ThreadPoolExecutor] = field(default_factory=dict)

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""
        return self.network.config

    @property
    def threads(self) -> int:
        """Threads of the backend."""
        return self.network.backend.n_threads

    @property
    def pool(self) -> KVPool:
        """The pages of all sequences; made when they are first needed. Raises `ResourceLimitError` without room."""
        self.check_open()
        with self._lock:
            if self._pool is None:
                n_page = pool_pages(self.network, self.cache_bytes)
                kept = max(1, n_page // CONTEXTS)
                self._pool = KVPool(self.config, self.network.numerics, n_page, max_kept=kept)
            return self._pool

    @property
    def workers(self) -> ThreadPoolExecutor:
        """Threads for whole calls of asynchronous callers."""
        return self._executor("bitnet-call")

    @property
    def steppers(self) -> ThreadPoolExecutor:
        """Threads for single steps of them, which do not wait for whole calls."""
        return self._executor("bitnet-step")

    def _executor(self, name: str) -> ThreadPoolExecutor:
        """Of this process: a child that was forked has none of its parent's threads."""
        self.check_open()
        with self._lock:
            key = os.getpid(), name
            if key not in self._executors:
                self._executors[key] = ThreadPoolExecutor(CONTEXTS, thread_name_prefix=name)
            return self._executors[key]

    def check_ids(self, ids: Sequence[int]) -> tuple[int, ...]:
        """The ids as plain numbers. Raises `UsageError` for none, or for one that is not a token of this model."""
        return self.network.check_ids(ids)

    def within_context(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """The ids as they are. Raises `ContextLengthError` for more than the model's context."""
        n_ctx = self.config.n_ctx
        if len(ids) > n_ctx:
            raise ContextLengthError(
                f"the prompt has {len(ids)} tokens; the model's context is {n_ctx}", remedy="shorten the prompt"
            )
        return ids

    def cache_apart(self, ids: tuple[int, ...], n_float: int) -> KVCache:
        """An empty sequence in a pool of its own for a call that keeps `n_float` floats for each of these ids.

        Raises:
            ResourceLimitError: They are more than the context, or both take more than BITNET_MEMORY_LIMIT leaves.
        """
        n_token = len(self.within_context(ids))
        cache = pages_for(n_token) * page_bytes(self.config, self.network.numerics)
        check_room(cache + 4 * n_float * n_token, f"the results for {n_token} tokens", "shorten the prompt")
        return self.network.new_cache(n_token)

    def open_cache(self, n_ctx: int, context: Literal["stop", "slide"] = "stop") -> KVCache:
        """An empty sequence of up to `n_ctx` tokens in the pool. Raises `ResourceLimitError` if it does not fit."""
        return KVCache(self.pool, n_ctx, context=context)

    def step(
        self,
        batch: Sequence[tuple[Sequence[int], KVCache]],
        meters: Sequence[Meter],
        counts: Sequence[Sequence[int | None]],
    ) -> list[list[Candidates]]:
        """One pass: for each sequence and each of its last tokens the largest logits; see `Network.forward_top`."""
        self.check_open()
        ledger = self.network.backend.ledger
        with self._turns:
            before = ledger.snapshot()
            found = self.network.forward_top(batch, counts)
            ran = ledger.since(before)
        for meter in meters:
            meter.add_pass(len(batch), ran)
        return found

    def hidden(self, ids: Sequence[int], cache: KVCache) -> Float32:
        """One pass: the states after the last norm, [n_token, n_embd]."""
        self.check_open()
        self.check_file()
        with self._turns:
            return self.network.hidden(ids, cache)

    def logits(self, ids: Sequence[int], cache: KVCache) -> Float32:
        """One pass: the logits [n_token, n_vocab] after every token."""
        self.check_open()
        self.check_file()
        with self._turns:
            return self.network.forward(ids, cache)

    def check_file(self) -> None:
        """To be called where a prompt begins. Raises `ModelFileError` once the model's file was written to."""
        self.network.check_unchanged()

    def check_open(self) -> None:
        """Raises `UsageError` once the model was closed."""
        if self.closed:
            raise UsageError("the model is closed", remedy="load it again")

    def close(self) -> None:
        """Give back the cache and the threads; calls in progress end with an error at their next token."""
        self.closed = True
        with self._turns, self._lock:
            executors, self._executors, self._pool = self._executors, {}, None
        for (process, _), executor in executors.items():
            if process == os.getpid():
                executor.shutdown(wait=False, cancel_futures=True)


def pool_pages(network: Network, cache_bytes: int | None = None) -> int:
    """Pages of a model's pool.

    Default: four full contexts, but no more than half of the memory that is free now. BITNET_MEMORY_LIMIT bounds the
    memory of the process, so the pool gets at most what is left of it.

    Raises:
        ResourceLimitError: There is not room for one page.
        UsageError: `cache_bytes` or the variable has no meaning.
    """
    one = page_bytes(network.config, network.numerics)
    if cache_bytes is not None:
        wanted = f"a number of bytes, at least {one}, which holds {PAGE} tokens of this model"
        cache_bytes = whole_number(cache_bytes, "cache_bytes", wanted, least=one)
    asked = cache_bytes or min(
        CONTEXTS * pages_for(network.config.n_ctx) * one, max(one, psutil.virtual_memory().available // 2)
    )
    limit = memory_limit()
    if limit is not None:
        left = limit - psutil.Process().memory_info().rss
        if left < one:
            raise ResourceLimitError(
                f"of {limit / 1e6:.0f} MB, {max(left, 0) / 1e6:.0f} MB are left for the KV cache; "
                f"{PAGE} tokens need {one / 1e6:.1f} MB",
                where=MEMORY,
                remedy="raise the limit, or take a smaller model",
            )
        asked = min(asked, left)
    return asked // one
