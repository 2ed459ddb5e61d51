"""A lock whose waiters take turns.

`threading.Lock` goes to whoever asks first after it is free, which is nearly always the thread that just let go of it:
one call that decodes would keep every other waiting until its end.
"""

from __future__ import annotations

from collections import deque
from threading import Lock


class Turns:
    """Held by one thread at a time (with-statement), in the order in which they came. Not reentrant."""

    def __init__(self) -> None:
        self._guard = Lock()
        self._held = False
        self._waiting: deque[Lock] = deque()

    def __enter__(self) -> None:
        taken = False
        try:
            with self._guard:
                if not self._held:
                    self._held = taken = True
                    return
                ticket = Lock()
                ticket.acquire()
                self._waiting.append(ticket)
        except BaseException:  # an interrupt that came with the turn: nobody would give it back
            if taken:
                self.__exit__()
            raise
        try:
            ticket.acquire()  # until the one before hands its turn over
        except BaseException:  # an interrupt: the place in the queue must not stay behind
            with self._guard:
                if ticket in self._waiting:
                    self._waiting.remove(ticket)
                    raise
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._held = False
