"""Calls from a running event loop: the work is done in threads, and a caller who is cancelled stops it.

Every pass releases the interpreter lock, so the loop stays awake. Calls that run at the same time take turns, pass by
pass (`bitnet.runtime`). A cancelled one ends after the token in progress and gives its cache back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Executor
from threading import Event
from typing import TypeVar, cast

from bitnet.generate import Decoder, Generation

T = TypeVar("T")

#: Makes the decoder of a call, tokenising its prompt; it ends early when the event is set.
Start = Callable[[Event], Decoder]


async def whole(start: Start, workers: Executor) -> Generation:
    """A whole continuation, in one of `workers`; more calls than those wait in the order they came."""
    cancelled = Event()
    return await _in(workers, lambda: start(cancelled).run(), cancelled)


async def pieces(start: Start, workers: Executor) -> AsyncGenerator[str]:
    """Pieces of a continuation; the next token is made when the next piece is asked for."""
    cancelled = Event()
    decoder = await _in(workers, lambda: start(cancelled), cancelled)
    iterator = cast("Generator[str]", iter(decoder))
    try:
        while (piece := await _in(workers, lambda: next(iterator, None), cancelled, after=iterator.close)) is not None:
            yield piece
    finally:
        if not cancelled.is_set():  # otherwise a thread is still in it, and closes it
            iterator.close()


async def _in(
    workers: Executor, work: Callable[[], T], cancelled: Event, *, after: Callable[[], None] | None = None
) -> T:
    """The result of work in a thread. A caller who is cancelled does not wait for its end; `after` is done then."""
    future = workers.submit(work)
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        cancelled.set()
        if after is not None:
            future.add_done_callback(lambda _: after())
        raise
