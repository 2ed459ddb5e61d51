"""The child-process transport, against runners that misbehave in every way we have seen native engines do."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from bitnet.errors import GGUFError
from reference.process import MAX_LOG_BYTES, ProcessRunner, how_it_ended, rebuild
from reference.runner import ReferenceFailedError, ReferenceUnavailableError, Request, Runner

ASK = Request(ids=(3, 1, 2))


def fake(name: str, **options) -> ProcessRunner:
    return ProcessRunner(f"process_fakes:{name}", timeout=options.pop("timeout", 20.0), **options)


def failure(name: str, request: Request = ASK, **options) -> ReferenceFailedError:
    with fake(name, **options) as runner, pytest.raises(ReferenceFailedError) as caught:
        runner.run(request)
    return caught.value


def test_it_is_a_runner_and_answers_as_the_runner_inside():
    with fake("Good") as runner:
        assert isinstance(runner, Runner)
        assert runner.info.name == "fake"
        assert runner.info.detail["pid"] == str(runner.pid) != str(os.getpid())
        lock = {("ffn_up", 1): np.arange(6, dtype=np.float32).reshape(3, 2)}
        seen = runner.run(Request(ids=(3, 1, 2), n_greedy=2, taps=True, lock=lock))
        assert seen.ids == (3, 1, 2, 0, 1)
        assert seen.generated == (0, 1)
        assert seen.seconds == {"prefill": 0.5}
        assert seen.logits.dtype == np.float32
        assert np.array_equal(seen.logits, np.arange(28, dtype=np.float32).reshape(4, 7))
        assert np.array_equal(seen.taps["embd", -1], np.ones((3, 3)))
        assert seen.taps["q", 2].shape == (3, 0)
        assert np.array_equal(seen.taps["ffn_up", 1], lock["ffn_up", 1])
        assert np.array_equal(runner.weights("abc"), np.full((2, 3), 3))
        assert runner.weights("abc", (1, 2)).shape == (1, 3)


def test_ids_of_texts_of_any_kind():
    with fake("Good") as runner:
        assert runner.tokenize("é\n\0") == (1, 233, 10, 0, 2)
        assert runner.tokenize("a", add_special=False, parse_special=False) == (97,)
        assert runner.tokenize("\udc80") == (1, 0xDC80, 2)  # a byte that is no UTF-8, as Python spells it
        assert runner.tokenize_many(["", "b"]) == [(1, 2), (1, 98, 2)]


def test_what_it_prints_does_not_corrupt_the_answers():
    with fake("Prints") as runner:
        for _ in range(3):
            assert runner.run(ASK).ids == ASK.ids


@pytest.mark.parametrize(
    ("name", "ended", "words"),
    [
        ("Segfaults", "killed by signal 11 (SIGSEGV)", "about to read address 0"),
        ("Aborts", "killed by signal 6 (SIGABRT)", "fake.c:12: ASSERT(n > 0) failed"),
        ("Exits", "ended with exit code 3", ""),
        ("Killed", "killed by signal 9 (SIGKILL), perhaps by the system for want of memory", ""),
        ("HungryNatively", "ran out of memory", "std::bad_alloc"),
    ],
)
def test_a_death_is_told_in_words(name, ended, words):
    error = failure(name)
    assert ended in error.what
    assert error.what.startswith("fake: ")
    assert words in error.last_words


@pytest.mark.parametrize("name", ["Hangs", "HangsNatively"])
def test_a_hang_is_killed(name):
    with fake(name, timeout=20.0) as runner:
        pid = int(runner.info.detail["pid"])
        runner.timeout = 0.5
        started = time.monotonic()
        with pytest.raises(ReferenceFailedError, match=r"no answer within 0\.5 s"):
            runner.run(ASK)
        assert time.monotonic() - started < 60  # it would hang for ever
    assert not psutil.pid_exists(pid)


def test_memory_has_a_limit():
    error = failure("Hungry", memory_limit=4 << 30)
    assert error.what == "fake: ran out of memory (its limit is 4096 MiB)"


def test_an_unlimited_print_is_kept_bounded():
    with fake("PrintsForEver") as runner:
        assert runner.info.name == "fake"
        runner.timeout = 1.0
        sizes = []
        child = runner._child
        assert child is not None
        trim = child.trim
        child.trim = lambda: (trim(), sizes.append(os.fstat(child.printed.fileno()).st_size))
        with pytest.raises(ReferenceFailedError, match="no answer") as caught:
            runner.run(ASK)
    assert len(sizes) > 3
    assert min(sizes) <= MAX_LOG_BYTES
    assert set(caught.value.last_words) == {"x"}


@pytest.mark.parametrize(
    "name",
    ["garbage", "not_an_object", "deep", "absurd_length", "wrong_length", "object_dtype", "no_arrays", "broken_error"],
)
def test_garbage_on_the_pipe_is_a_failure(name):
    started = time.monotonic()
    error = failure(name)
    assert "answered nonsense" in error.what
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("name", ["ShortLogits", "ShortTap", "OtherIds"])
def test_an_answer_to_another_question_is_a_failure(name):
    assert "answered nonsense" in failure(name).what


@pytest.mark.parametrize(("name", "what"), [("DoubleLogits", "logits"), ("DoubleTap", r"tap \('q', 0\)")])
def test_an_answer_in_another_type_is_refused_for_its_type(name, what):
    assert re.search(rf"{what} of shape \(3, \d\) and type float64, not a float32 matrix", failure(name).what)


@pytest.mark.parametrize("name", ["closes", "large_but_absent"])
def test_a_closed_pipe_is_a_failure_and_allocates_nothing(name):
    before = psutil.Process().memory_info().rss
    assert "closed its pipe" in failure(name).what
    assert psutil.Process().memory_info().rss - before < 256 << 20  # the lie was 8 GiB


def test_an_answer_that_cannot_travel_is_a_failure():
    assert "float16 does not travel" in failure("HalfPrecision").what


def test_nan_travels_as_it_is():
    with fake("NaN") as runner:
        assert np.isnan(runner.run(ASK).logits[0, 0])


def test_errors_of_the_runner_travel_back_as_themselves():
    with fake("Refuses") as runner:
        with pytest.raises(ReferenceUnavailableError, match="cannot do this") as refused:
            runner.run(ASK)
        assert refused.value.remedy == "ask another"
        assert runner.tokenize("a") == (1, 97, 2)  # the child is alive and well
    assert failure("Fails").last_words == "no memory slot"
    error = failure("Raises")
    assert error.what == "fake: ZeroDivisionError: of a runner"
    assert "in run" in error.last_words
    with fake("RaisesTyped") as runner, pytest.raises(GGUFError) as typed:
        runner.run(ASK)
    expected = GGUFError("bad magic", path="some.gguf", offset=0, remedy="download it again")
    assert str(typed.value) == str(expected)
    assert typed.value.exit_code == 3


def test_only_our_own_loaded_errors_are_rebuilt():
    for name in (["os", "system"], ["builtins", "ValueError"], ["no.such.module", "Error"]):
        error = rebuild({"class": name, "args": ["echo"], "state": {}})
        assert isinstance(error, ReferenceFailedError)


@pytest.mark.parametrize(
    ("name", "what", "remedy"),
    [
        ("refuses_to_start", "no library", "build it"),
        ("lacks_a_package", "a_package_that_nobody_has", "pip install a_package_that_nobody_has"),
        ("lacks_a_library", "libnosuch.so", None),
    ],
)
def test_what_cannot_start_is_unavailable(name, what, remedy):
    with fake(name) as runner, pytest.raises(ReferenceUnavailableError, match=what) as caught:
        _ = runner.info
    assert caught.value.remedy == remedy


def test_a_module_that_does_not_exist_is_unavailable():
    with (
        ProcessRunner("no_such_module:Runner") as runner,
        pytest.raises(ReferenceUnavailableError, match="no_such_module"),
    ):
        runner.run(ASK)


def test_a_death_at_start_is_a_failure():
    error = failure("dies_at_start")
    assert error.what == "dies_at_start: ended with exit code 4 instead of answering"
    assert error.last_words == "last words of the start"


def test_the_next_request_starts_it_again():
    with fake("Aborts") as runner:
        pids = set()
        for _ in range(2):
            assert runner.tokenize("a") == (1, 97, 2)
            pids.add(runner.pid)
            with pytest.raises(ReferenceFailedError, match="SIGABRT"):
                runner.run(ASK)
            assert runner.pid is None
        assert len(pids) == 2


def test_a_restart_must_be_the_same_model():
    with fake("changes_model") as runner:
        assert runner.run(ASK).ids == ASK.ids
        os.kill(runner.pid, signal.SIGKILL)
        with pytest.raises(ReferenceFailedError, match="SIGKILL"):
            runner.run(ASK)
        with pytest.raises(ReferenceFailedError, match="another model"):
            runner.run(ASK)


def test_killed_between_requests_is_noticed():
    with fake("Good") as runner:
        runner.run(ASK)
        os.kill(runner.pid, signal.SIGKILL)
        with pytest.raises(ReferenceFailedError, match="SIGKILL"):
            runner.run(ASK)
        assert runner.run(ASK).ids == ASK.ids


def test_closing_twice_and_again_after_use():
    runner = fake("Good")
    runner.close()
    runner.run(ASK)
    pid = runner.pid
    runner.close()
    runner.close()
    assert not psutil.pid_exists(pid)


def test_a_forgotten_runner_leaves_no_process():
    runner = fake("Good")
    runner.run(ASK)
    pid = runner.pid
    del runner
    gc.collect()
    assert not psutil.pid_exists(pid)


@pytest.mark.slow  # waits out the five seconds that an orderly end may take
def test_a_hang_while_closing_is_killed():
    runner = fake("HangsAtClose")
    runner.run(ASK)
    pid = runner.pid
    runner.close()
    assert not psutil.pid_exists(pid)


def test_an_interrupt_kills_the_child_and_goes_on_up():
    with fake("Hangs") as runner:
        pid = int(runner.info.detail["pid"])
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            runner.run(ASK)
        timer.join()
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("name", ["Good", "HangsNatively"])
def test_the_child_dies_with_its_parent(name):
    """Idle or deep in a native call, when the parent is killed."""
    code = (
        "import sys\n"
        "from reference.process import ProcessRunner\n"
        "from reference.runner import Request\n"
        f"runner = ProcessRunner('process_fakes:{name}')\n"
        "print(runner.info.detail['pid'], flush=True)\n"
        + ("runner.run(Request(ids=(1,)))" if name == "HangsNatively" else "sys.stdin.read()")
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        time.sleep(0.3)  # into the native call
        parent.kill()
    deadline = time.monotonic() + 60
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # an orphan may wait for init to reap it
    except psutil.NoSuchProcess:
        return False


def test_an_exit_status_in_words():
    assert how_it_ended(-6, "", None) == "killed by signal 6 (SIGABRT)"
    assert how_it_ended(-64, "", None).startswith("killed by signal 64")
    assert how_it_ended(0, "", None) == "ended with exit code 0 instead of answering"
    assert how_it_ended(-9, "failed to allocate buffer", 1 << 30) == (
        "killed by signal 9 (SIGKILL): it ran out of memory (its limit is 1024 MiB)"
    )
