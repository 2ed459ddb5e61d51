"""Threads that meet: none passes before all have come, and each sees what the others wrote."""

import threading

import numpy as np
import pytest

from bitnet.kernels import barrier
from bitnet.kernels.compile import kernel


@kernel
def rounds(state, thread, n_threads, n, written, missed):
    """Write the round's number, meet, look at everybody's, meet again."""
    for i in range(n):
        written[16 * thread] = i + 1
        barrier.wait(state, n_threads)
        for other in range(n_threads):
            if written[16 * other] != i + 1:
                missed[0] += 1
        barrier.wait(state, n_threads)


@kernel
def rounds_without(state, thread, n_threads, n, written, missed):
    """The same for threads that do not wait."""
    for i in range(n):
        written[16 * thread] = i + 1
        for other in range(n_threads):
            if written[16 * other] != i + 1:
                missed[0] += 1


def run(function, n_threads, n):
    state, written, missed = barrier.new_barrier(n_threads), np.zeros(16 * n_threads, np.int64), np.zeros(1, np.int64)
    arguments = [(state, thread, n_threads, n, written, missed) for thread in range(n_threads)]
    function(barrier.new_barrier(1), 0, 1, 1, written.copy(), missed)  # compiled before anybody waits
    threads = [threading.Thread(target=function, args=a, daemon=True) for a in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return int(missed[0])


@pytest.mark.parametrize("n_threads", [1, 2, 3, 5])
def test_everybody_sees_everybody(n_threads):
    assert run(rounds, n_threads, 300) == 0


def test_without_it_they_do_not():
    assert run(rounds_without, 4, 20_000) > 0


@kernel
def begin(state, n_threads, came):
    """Whether all came."""
    if barrier.enter(state, n_threads):
        barrier.take(came, 0, 1)


def beginners(n_threads, n):
    """State, count of those that passed, and n threads that were started."""
    state, came = barrier.new_barrier(n_threads), barrier.new_counter()
    begin(barrier.new_barrier(1), 1, barrier.new_counter())  # compiled before anybody waits
    threads = [threading.Thread(target=begin, args=(state, n_threads, came), daemon=True) for _ in range(n)]
    for thread in threads:
        thread.start()
    return state, came, threads


def test_all_begin_or_none():
    _, came, threads = beginners(3, 3)
    for thread in threads:
        thread.join(60)
    assert came[0] == 3


def test_who_waits_for_one_that_never_comes_is_let_go():
    state, came, threads = beginners(4, 3)
    assert any(thread.is_alive() for thread in threads)
    barrier.give_up(state)
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert came[0] == 0


def test_threads_without_a_core_of_their_own_yield_at_once():
    assert barrier.new_barrier(1)[17] == barrier.SPINS
    assert barrier.new_barrier(4096)[17] == 0


@kernel
def take_all(counter, at, n, taken):
    """How often each of the numbers below the size of `taken` was given to this thread."""
    first = barrier.take(counter, at, n)
    while first < taken.size:
        for i in range(first, min(first + n, taken.size)):
            taken[i] += 1
        first = barrier.take(counter, at, n)


def test_every_number_is_taken_once():
    taken = np.zeros((4, 100_003), np.int64)
    take_all(barrier.new_counter(), 0, 7, np.zeros(1, np.int64))  # compiled before anybody counts
    counter, at = barrier.new_counters(3), 2 * barrier.COUNTER
    threads = [threading.Thread(target=take_all, args=(counter, at, 7, mine), daemon=True) for mine in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert (taken.sum(axis=0) == 1).all()
    assert not np.delete(counter, at).any()
