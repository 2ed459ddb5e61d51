"""Waiters take turns in the order they came, and one that gives up keeps nobody waiting."""

from __future__ import annotations

import sys
import threading
import time
from queue import SimpleQueue

import pytest

from bitnet import turns as turns_module
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

    class Interrupted(SimpleQueue):
        def get(self):
            raise KeyboardInterrupt

    held, done = threading.Event(), threading.Event()

    def hold():
        with turns:
            held.set()
            done.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(60)
    with monkeypatch.context() as patch:
        patch.setattr("bitnet.turns.SimpleQueue", Interrupted)
        with pytest.raises(KeyboardInterrupt), turns:
            pass
    assert len(turns._queue) == 1
    done.set()
    holder.join()
    with turns:
        pass


@pytest.mark.parametrize("call", ["__enter__", "__exit__"])
def test_an_interrupt_at_any_instruction_leaves_a_turn_that_others_get(call):
    """Raised before each of the instructions that take or give back a turn, as signals are."""
    n, left = 0, True
    while left:
        turns, n = Turns(), n + 1
        count = [n]

        def interrupt(frame, event, _, count=count):
            if frame.f_code.co_filename == turns_module.__file__:
                frame.f_trace_opcodes = True
                if event == "opcode":
                    count[0] -= 1
                    if count[0] == 0:
                        raise KeyboardInterrupt
            return interrupt

        if call == "__exit__":
            turns.__enter__()
        sys.settrace(interrupt)
        try:
            getattr(turns, call)(*([None] * 3 if call == "__exit__" else []))
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        left = count[0] <= 0
        if call == "__enter__" and not left:
            turns.__exit__()
        got = threading.Event()
        other = threading.Thread(target=lambda: (turns.__enter__(), got.set(), turns.__exit__()), daemon=True)  # noqa: B023  # joined below
        other.start()
        if not got.wait(0.2):
            with turns:  # who was interrupted before the first instruction gives it back when it asks again
                pass
        assert got.wait(60), n
        other.join()
    assert n > 20
