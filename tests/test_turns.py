"""Waiters take turns in the order they came, and one that gives up keeps nobody waiting."""

from __future__ import annotations

import threading
import time

import pytest

from bitnet.turns import Turns


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_one_at_a_time():
    turns, inside, most = Turns(), [], []

    def work():
        for _ in range(200):
            with turns:
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 800


@pytest.mark.parametrize(("lock", "fair"), [(Turns, True), (threading.Lock, False)])
def test_in_the_order_they_came_even_if_one_never_stops_asking(lock, fair):
    """A plain lock goes to the thread that just let go of it."""
    turns, order, started = lock(), [], threading.Event()

    def busy():
        for i in range(3000):
            with turns:
                order.append("busy")
                if i == 0:
                    started.set()
                    time.sleep(0.05)  # the other one is waiting now

    def other():
        started.wait()
        with turns:
            order.append("other")

    threads = [threading.Thread(target=busy), threading.Thread(target=other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if fair:
        assert order.index("other") == 1


def test_an_error_inside_hands_it_on():
    turns = Turns()
    with pytest.raises(ValueError), turns:
        raise ValueError
    with turns:
        pass


def test_a_waiter_who_is_interrupted_leaves_the_queue(monkeypatch):
    turns = Turns()
    real = threading.Lock

    class Interrupted:
        """A ticket whose holder is interrupted while waiting: the first `acquire` is its making."""

        def __init__(self):
            self.calls = 0

        def acquire(self):
            self.calls += 1
            if self.calls == 2:
                raise KeyboardInterrupt

        def release(self):
            raise AssertionError("it is not in the queue any more")

    with turns:
        monkeypatch.setattr("bitnet.turns.Lock", Interrupted)
        with pytest.raises(KeyboardInterrupt), turns:
            pass
        monkeypatch.setattr("bitnet.turns.Lock", real)
    with turns:
        pass


def test_an_interrupt_that_comes_with_the_turn_hands_it_on(monkeypatch):
    turns = Turns()
    real = threading.Lock

    class Late:
        def __init__(self):
            self.calls = 0

        def acquire(self):
            self.calls += 1
            if self.calls == 2:
                turns.__exit__()  # the holder hands it over, and then
                raise KeyboardInterrupt

        def release(self):
            pass

    turns.__enter__()
    monkeypatch.setattr("bitnet.turns.Lock", Late)
    with pytest.raises(KeyboardInterrupt), turns:
        pass
    monkeypatch.setattr("bitnet.turns.Lock", real)
    with turns:
        pass


def test_an_interrupt_while_a_free_turn_is_taken_gives_it_back():
    turns = Turns()
    guard = turns._guard

    class Interrupted:
        def __enter__(self):
            guard.acquire()

        def __exit__(self, *_):
            guard.release()
            turns._guard = guard
            raise KeyboardInterrupt

    turns._guard = Interrupted()
    with pytest.raises(KeyboardInterrupt), turns:
        pass
    with turns:
        pass
