import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from command_line import run as run_command
from command_line import validated
from hub_server import COMMIT, serve

from bitnet.cli.model_download import only_file
from bitnet.errors import UsageError

CONTENT = bytes(range(256)) * 200_000  # 51 MB: the library hands on 10 MB at a time
DIGEST = hashlib.sha256(CONTENT).hexdigest()
ROOT = Path(__file__).parents[1]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serve() as running:
        running.files = {"tiny.gguf": b"content", "README.md": b"read me"}
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        for variable in ("HF_HUB_CACHE", "BITNET_OFFLINE", "HF_HUB_OFFLINE", "HF_TOKEN"):
            monkeypatch.delenv(variable, raising=False)
        yield running


def run(*arguments):
    return run_command("model", "download", *arguments)


def command(*arguments):
    return [sys.executable, "-m", "bitnet", "model", "download", *arguments]


def test_the_only_gguf_is_fetched_and_its_path_printed(hub, tmp_path):
    result = run("someone/tiny")
    assert result.code == 0
    path = tmp_path / "hf/hub/models--someone--tiny/snapshots" / COMMIT / "tiny.gguf"
    assert result.out.strip() == str(path)
    assert path.read_bytes() == b"content"
    assert f"tiny.gguf at {COMMIT[:12]}, sha256 {hashlib.sha256(b'content').hexdigest()}" in result.err
    assert "in the cache already" in run("someone/tiny").err


def test_files_may_be_named(hub):
    result = run("someone/tiny", "--file", "README.md", "--file", "tiny.gguf", "--quiet")
    assert [Path(line).name for line in result.out.split()] == ["README.md", "tiny.gguf"]
    assert result.err == ""


def test_a_pin_of_several_files_has_no_meaning(hub):
    result = run("someone/tiny", "--file", "a", "--file", "b", "--sha256", "0" * 64)
    assert result.code == 2
    assert "one digest cannot be that of several files" in result.err


def test_a_document_says_the_same(hub):
    document = validated(run("someone/tiny", "--format", "json").out)
    assert document["files"][0]["sha256"] == hashlib.sha256(b"content").hexdigest()
    assert document["files"][0]["transferred"] == len(b"content")
    assert validated(run("someone/tiny", "--format", "json").out)["files"][0]["transferred"] == 0
    hub.status = 404
    assert validated(run("someone/other", "--format", "json").out)["severity"] == "environment"


@pytest.mark.parametrize(
    ("files", "message"),
    [(("a.gguf", "b.gguf"), "has 2 GGUF files"), (("a", "b"), "has no GGUF files"), ((), "has no files")],
)
def test_what_is_not_one_file_must_be_named(files, message):
    with pytest.raises(UsageError, match=message) as caught:
        only_file("a/b", files)
    assert caught.value.remedy
    assert only_file("a/b", ("README.md", "x/y.gguf")) == "x/y.gguf"


@pytest.mark.parametrize(
    ("behaviour", "arguments", "code", "message"),
    [
        ({"status": 404, "error_code": "RepoNotFound"}, (), 4, "no repository that this user can see"),
        ({"status": 500}, ("--file", "tiny.gguf"), 4, "answers 500"),
        ({}, ("--sha256", "0" * 64), 3, "not the 0000"),
        ({}, ("--sha256", "x"), 2, "is not a sha256"),
        ({}, ("--file", "../x"), 2, "is not a path inside"),
    ],
)
def test_a_mistake_is_one_message_with_a_hint_and_a_code(behaviour, arguments, code, message, hub):
    for name, value in behaviour.items():
        setattr(hub, name, value)
    done = subprocess.run(command("someone/tiny", *arguments), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code
    assert message in done.stderr
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_program_that_is_killed_goes_on_where_it_was(sent, hub, tmp_path):
    hub.files = {"big.gguf": CONTENT}
    hub.break_after, hub.stalled = 31_000_000, threading.Event()
    child = subprocess.Popen(command("someone/tiny", "--quiet"), cwd=ROOT, stderr=subprocess.PIPE)
    partial = tmp_path / "hf/hub/models--someone--tiny/blobs" / f"{DIGEST}.incomplete"
    deadline = time.monotonic() + 60  # seconds: an interpreter starting on a busy machine
    while not (partial.exists() and partial.stat().st_size >= 20_000_000):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(sent)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == (130 if sent == signal.SIGINT else -sent)
    assert b"Traceback" not in errors
    had = partial.stat().st_size
    hub.break_after = None
    hub.stalled.set()
    done = subprocess.run(command("someone/tiny", "--sha256", DIGEST), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_bytes() == CONTENT
    assert hub.gets()[-1][2] == f"bytes={had}-"
    assert not partial.exists()
