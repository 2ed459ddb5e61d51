"""The threads of a backend: started when they are first needed, anew in a process that was forked, and interruptible.

Not `concurrent.futures`: its locks are Python's, and an interrupt of the thread that hands it work can leave one held,
after which nothing it is given ever runs. Here a thread and whoever gives it work meet in single calls that are whole
or did not happen.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from queue import SimpleQueue
from threading import Lock, Thread
from weakref import finalize

from bitnet.errors import ResourceLimitError


class Task:
    """Work that was given to a thread; only who gave it may ask after it.

    Args:
        work: What is called, once at most.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._claim, self._done = Lock(), Lock()
        self._done.acquire()
        self._ended = False
        self._error: BaseException | None = None

    def run(self) -> None:
        """Do it, unless it was cancelled."""
        if not self.cancel():
            return
        try:
            self._work()
        except BaseException as error:  # raised in the thread that asks for it
            self._error = error
        self._ended = True
        self._done.release()

    def cancel(self) -> bool:
        """Whether no thread had begun it; then none will."""
        return self._claim.acquire(blocking=False)

    def wait(self) -> None:
        """Return when it has ended; it must not have been cancelled."""
        if not self._ended:
            self._done.acquire()

    def result(self) -> None:
        """Wait, and raise what it raised."""
        self.wait()
        if self._error is not None:
            raise self._error


class Threads:
    """Threads that take work from one queue.

    A child that was forked has none of its parent's threads, and would wait for them for ever: it starts its own.

    Args:
        n: How many.
        name: Theirs, for people who debug.
    """

    def __init__(self, n: int, name: str) -> None:
        self._n, self._name = n, name
        self._started: tuple[int, SimpleQueue[Task | None]] | None = None

    def submit(self, work: Callable[[], None]) -> Task:
        """Have it done by the next thread that is free.

        Raises:
            ResourceLimitError: The system starts no so many threads.
        """
        started = self._started
        if started is None or started[0] != os.getpid():
            started = self._started = os.getpid(), self._start()
        task = Task(work)
        started[1].put(task)
        return task

    def _start(self) -> SimpleQueue[Task | None]:
        queue: SimpleQueue[Task | None] = SimpleQueue()
        try:
            for i in range(self._n):
                Thread(target=_serve, args=(queue,), name=f"{self._name}-{i}", daemon=True).start()
        except BaseException as error:
            _end(queue, self._n)
            if not isinstance(error, RuntimeError):
                raise
            raise ResourceLimitError(
                f"the system starts no {self._n + 1} threads: {error}",
                remedy="ask for fewer: --threads, or BITNET_NUM_THREADS",
            ) from error
        finalize(self, _end, queue, self._n)
        return queue


def _serve(queue: SimpleQueue[Task | None]) -> None:
    while (task := queue.get()) is not None:
        task.run()
        del task  # what it holds may be large, and the next may be long in coming


def _end(queue: SimpleQueue[Task | None], n: int) -> None:
    for _ in range(n):
        queue.put(None)
