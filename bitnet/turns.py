"""A lock whose waiters take turns, and which an interrupt cannot leave held.

`threading.Lock` goes to whoever asks first after it is free, which is nearly always the thread that just let go of it:
one call that decodes would keep every other waiting until its end. And an interrupt may come between any two
instructions of the main thread, also of the code that takes or gives back a turn. So the queue changes in single calls
that are whole or did not happen, and what may have been left undone is done again, which changes nothing if it was not.
"""

from __future__ import annotations

from collections import deque
from queue import SimpleQueue
from threading import get_ident


class Turns:
    """Held by one thread at a time (with-statement), in the order in which they came. Not reentrant."""

    def __init__(self) -> None:
        self._queue: deque[_Ticket] = deque()  # whose is the first holds it

    def __enter__(self) -> None:
        try:
            self._leave()  # an interrupt may have come before `__exit__` began
            ticket = _Ticket()
            self._queue.append(ticket)
            if self._queue[0] is not ticket:
                ticket.called.get()
        except BaseException:  # the place in the queue must not stay behind
            self._leave()
            raise

    def __exit__(self, *_: object) -> None:
        try:
            self._leave()
        except BaseException:
            self._leave()
            raise

    def _leave(self) -> None:
        """Give up whatever this thread has in the queue, and call the first: once too often does no harm."""
        thread = get_ident()
        for ticket in tuple(self._queue):
            if ticket.thread == thread:
                self._queue.remove(ticket)
        for first in tuple(self._queue)[:1]:
            first.called.put(None)


class _Ticket:
    """A place in the queue; equal to no other."""

    __slots__ = ("called", "thread")

    def __init__(self) -> None:
        self.thread = get_ident()
        self.called: SimpleQueue[None] = SimpleQueue()
