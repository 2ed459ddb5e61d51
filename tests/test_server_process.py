"""A server starts, answers us alone, tells how it ended in its own words, and does not outlive us."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import fake_llama_server as fake
import pytest

from reference.runner import ReferenceFailedError, ReferenceUnavailableError
from reference.server_process import ServerProcess

ASKED = {"prompt": [1, 2], "cache_prompt": False, "logit_bias": []}
THREE = {**ASKED, "prompt": [1, 2, 3]}  # what the fakes lie about


@pytest.fixture
def start(tmp_path, monkeypatch):
    started = []

    def begin(mode="good", **options):
        monkeypatch.setenv("FAKE_SERVER", mode)
        started.append(ServerProcess(fake.place(tmp_path), ("-m", "none"), **options))
        return started[-1]

    yield begin
    for server in started:
        server.close()


def gone(pid, seconds=30.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def test_it_answers_and_ends(start):
    server = start()
    assert server.ask("/completion", ASKED, most=1 << 16)["tokens_evaluated"] == 2
    assert os.getpgid(server.pid) not in (os.getpgid(0), os.getpgid(os.getppid()))
    server.close()
    server.close()
    assert gone(server.pid)


def test_nobody_else_is_answered(start):
    server = start()
    url = f"http://127.0.0.1:{server.port}/completion"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with pytest.raises(urllib.error.HTTPError) as caught:
        opener.open(urllib.request.Request(url, data=b"{}", headers={"Authorization": "Bearer x"}), timeout=10)
    with caught.value:
        assert caught.value.code == 401


def test_a_start_that_fails_is_told_in_its_own_words(start, tmp_path):
    with pytest.raises(ReferenceUnavailableError, match=r"exit code 1.*unknown model architecture"):
        start("dies_at_start")
    with pytest.raises(ReferenceFailedError, match=r"did not answer within 1 s.*loading"):
        start("hangs_at_start", start_seconds=1.0)
    with pytest.raises(ReferenceUnavailableError, match="exit code 127"):
        ServerProcess(tmp_path / "nothing", ())


def test_a_port_that_was_taken_is_no_end(start, monkeypatch):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = [taken.getsockname()[1], taken.getsockname()[1]]
        free = __import__("reference.server_process", fromlist=["_free_port"])._free_port
        monkeypatch.setattr("reference.server_process._free_port", lambda: ports.pop() if ports else free())
        assert start().ask("/health") == {"status": "ok"}
        assert not ports


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        ("dies", r"SIGABRT.*last words: GGML_ASSERT\(n > 0\) failed"),
        ("hangs", "no answer within 1 s"),
        ("not_json", "no JSON"),
        ("nan", "NaN is no JSON"),
        ("long", "more than 65536 bytes"),
    ],
)
def test_a_server_that_fails_is_ended(start, mode, why):
    server = start(mode, answer_seconds=1.0 if mode == "hangs" else 60.0)
    assert server.ask("/completion", ASKED, most=1 << 16)
    with pytest.raises(ReferenceFailedError, match=why):
        server.ask("/completion", THREE, most=1 << 16)
    assert gone(server.pid)


def test_a_refusal_is_no_failure(start):
    server = start("refuses")
    with pytest.raises(ReferenceUnavailableError, match="refuses /completion: the request exceeds the context"):
        server.ask("/completion", THREE)
    assert server.ask("/completion", ASKED, most=1 << 16)


def test_it_dies_with_its_parent_however_that_dies(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_SERVER", "good")
    program = (
        "import sys, time; from pathlib import Path; from reference.server_process import ServerProcess\n"
        "s = ServerProcess(Path(sys.argv[1]), ('-m', 'none')); print(s.pid, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", program, str(fake.place(tmp_path))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as parent:
        pid = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert gone(pid)
