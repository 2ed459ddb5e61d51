"""Threads of a backend: what fails or is interrupted keeps nobody waiting, and a forked child has its own."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time

import pytest

import bitnet
from bitnet.errors import ResourceLimitError
from bitnet.threads import Threads

MODEL = "fixtures/models/tiny-relu2.i2_s.gguf"
PROMPT = "One day Anna"


def named(name):
    return [thread for thread in threading.enumerate() if thread.name.startswith(name)]


def test_work_is_done_once_in_other_threads():
    threads, seen = Threads(3, "test-once"), []
    tasks = [threads.submit(lambda: seen.append(threading.get_ident())) for _ in range(50)]
    for task in tasks:
        task.result()
        task.result()
    assert len(seen) == 50
    assert threading.get_ident() not in seen
    assert len(named("test-once")) == 3


def test_none_is_started_before_it_is_needed_and_none_outlives_its_owner():
    threads = Threads(2, "test-outlive")
    assert not named("test-outlive")
    threads.submit(lambda: None).result()
    assert len(named("test-outlive")) == 2
    del threads
    gc.collect()
    end = time.monotonic() + 60
    while named("test-outlive"):
        assert time.monotonic() < end
        time.sleep(0.001)


def test_what_the_work_raises_reaches_who_asks():
    def fail():
        raise ZeroDivisionError

    threads = Threads(1, "test-raise")
    task = threads.submit(fail)
    task.wait()
    with pytest.raises(ZeroDivisionError):
        task.result()
    threads.submit(lambda: None).result()  # the thread lives on


def test_only_what_nobody_began_is_cancelled():
    threads, begun, gate, seen = Threads(1, "test-cancel"), threading.Event(), threading.Event(), []
    first = threads.submit(lambda: (begun.set(), gate.wait(60)))
    second = threads.submit(lambda: seen.append(1))
    assert begun.wait(60)
    assert not first.cancel()
    assert second.cancel()
    gate.set()
    first.result()
    threads.submit(lambda: None).result()
    assert seen == []


def test_a_system_that_starts_no_thread_is_a_limit_and_not_a_hang(monkeypatch):
    model = bitnet.load(MODEL, n_threads=3)
    start, left = threading.Thread.start, [1]

    def refuse(self):
        if not left:
            raise RuntimeError("can't start new thread")
        left.pop()
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(ResourceLimitError, match="starts no 3 threads") as caught:
        model.generate(PROMPT, max_new_tokens=2)
    assert "--threads" in str(caught.value.remedy)
    monkeypatch.undo()
    assert (
        model.generate(PROMPT, max_new_tokens=2).ids
        == bitnet.load(MODEL, n_threads=1).generate(PROMPT, max_new_tokens=2).ids
    )


def test_an_interrupt_before_a_pass_begins_leaves_a_model_that_can_be_used(monkeypatch):
    model = bitnet.load(MODEL, n_threads=2)
    wanted = model.generate(PROMPT, max_new_tokens=4).ids
    submit, armed = Threads.submit, [1]

    def interrupted(self, work):
        task = submit(self, work)
        if armed:
            armed.pop()
            raise KeyboardInterrupt
        return task

    monkeypatch.setattr(Threads, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.generate(PROMPT, max_new_tokens=4)
    assert model.generate(PROMPT, max_new_tokens=4).ids == wanted


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers here")
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # psutil's files
def test_interrupts_at_any_moment_leave_a_model_that_can_be_used():
    """In the main thread, where Python raises them between any two instructions."""
    model = bitnet.load(MODEL, n_threads=2)
    wanted = model.generate(PROMPT, max_new_tokens=4).ids
    hits = 0
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for i in range(150):
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-5 + i * 4e-5)
                model.generate(PROMPT, max_new_tokens=4)
                time.sleep(0.01)
            except KeyboardInterrupt:
                hits += 1
            assert model.generate(PROMPT, max_new_tokens=4).ids == wanted
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert hits > 100


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_forked_child_has_threads_of_its_own():
    model = bitnet.load(MODEL, n_threads=2)
    wanted = model.generate(PROMPT, max_new_tokens=4).ids
    child = os.fork()
    if child == 0:
        os._exit(0 if model.generate(PROMPT, max_new_tokens=4).ids == wanted else 1)
    end = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail("the child waits for threads that it does not have")
        time.sleep(0.01)
    assert ended[1] == 0
