"""Exit codes, messages, and documents of failures; nothing a user does ends in a traceback."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import subprocess
import sys

import pytest
from command_line import ROOT, TINY, leaves, run, validated

from bitnet.cli import main as module
from bitnet.cli.app import PLUGINS
from bitnet.errors import ModelFileError

PROGRAM = [sys.executable, "-m", "bitnet"]


def call(*arguments, **settings):
    return subprocess.run([*PROGRAM, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, **settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["modle"], "No such command 'modle'"),
        (["model", "inof"], "Did you mean 'info'"),
        (["model", "info", "--depth", "3"], "No such option: --depth"),
        (["model", "info", TINY, "--format", "xml"], "'xml' is not one of 'human', 'json'"),
        (["infer", "run", "-m", TINY], "Missing option '--prompt'"),
        (["infer", "run", "-m", TINY, "-p", "x", "--threads", "0"], "Invalid value for '--threads'"),
        (["infer", "run", "-m", TINY, "-p", "x", "--threads", "20000"], "1024"),
        (["infer", "batch", "-", "-o", "-", "-m", TINY, "--threads", "20000"], "1024"),
        (["infer", "chat", "-m", TINY, "--threads", 20 * "9"], "1024"),
        (["system", "info", "--threads", "1025"], "1024"),
        (["infer", "run", "-m", TINY, "-p", "x", "--preset", "wild"], "'wild' is not one of"),
        (["infer", "run", "-m", TINY, "-p", "x", "--top-p", "0"], "top_p is 0.0"),
        (["infer", "run", "-m", TINY, "-p", "x", "--device", "abacus"], "no device 'abacus'"),
        (["model", "info", TINY, "another"], "nexpected extra argument"),
    ],
)
def test_wrong_usage_is_one_message_with_a_hint_and_2(arguments, message, monkeypatch):
    monkeypatch.delenv("BITNET_GGUF", raising=False)
    done = run(*arguments)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("bitnet: ") == 1
    assert "  hint: " in done.err
    assert done.out == ""


def test_commands_of_other_packages_are_missed_where_nothing_is_installed(monkeypatch):
    hint = "benchmark, receipt and validate are there once this package is installed"
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: ())
    for words, told in ((["benchmark", "run"], True), (["model", "benchmark"], False)):
        done = run(*words)
        assert done.code == 2
        assert "No such command 'benchmark'" in done.err
        assert (hint in done.err) is told
    one = importlib.metadata.EntryPoint("validate", "crossval.validate_cli:app", PLUGINS)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: (one,))
    assert hint not in run("modle").err


@pytest.mark.parametrize("words", [[], ["model"], ["infer"], ["system"]])
def test_a_group_alone_shows_its_help(words):
    done = run(*words)
    assert done.code == 2
    assert done.err == run(*words, "--help").out
    assert done.out == ""


def test_the_same_as_a_document(monkeypatch):
    for arguments in (
        ["model", "info", "--depth", "--format", "json"],
        ["model", "info", "none.gguf", "--format=json"],
    ):
        done = run(*arguments)
        document = validated(done.out)
        assert document["exit_code"] == done.code
        assert done.code == (2 if "--depth" in arguments else 3)
        assert done.err == ""
        assert done.out.count("\n") == 1


@pytest.mark.parametrize("words", [words for words, _ in leaves() if words[0] == "model" and words[1] != "download"])
def test_a_file_that_is_no_model_is_code_3(words, tmp_path):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"not a model at all")
    more = {"compare": [bad], "convert": [tmp_path / "out.gguf", "--type", "f32"]}.get(words[1], [])
    done = run(*words, bad, *more)
    if words[1] == "list":
        assert done.code == 0
        assert "?" in done.out
        assert "bad.gguf: " in done.err
    else:
        assert done.code == 3
        assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyError("x"), 1, "a fault of this program, KeyError: 'x'"),
        (MemoryError(), 6, "not enough memory"),
        (OSError(errno.ENOSPC, "No space left on device", "a.jsonl"), 6, "a.jsonl: the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "b"), 2, "b: Permission denied"),
        (ModelFileError("is bent", where="m"), 3, "m: is bent"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_whatever_is_raised_ends_in_a_code(error, code, message, monkeypatch):
    def raising(**_):
        raise error

    monkeypatch.setattr(module, "app", raising)
    done = run("model")
    assert done.code == code
    assert message in done.err
    assert "Traceback" not in done.err
    assert validated(run("--format", "json").out)["exit_code"] == code


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_is_no_failure(unbuffered):
    child = subprocess.Popen(
        [*PROGRAM, "model", "info", TINY, "--tensors"],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    child.stdout.close()
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 0
    assert errors == b""


def test_the_version():
    assert run("--version").out == "bitnet 0.1.0\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell):
    shown = call(
        "--show-completion", env=os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "", "SHELL": shell}
    )
    assert "Traceback" not in shown.stderr
    values = {"_BITNET_COMPLETE": f"complete_{shell}", "COMP_WORDS": "bitnet model co", "COMP_CWORD": "2"}
    values |= {"_TYPER_COMPLETE_ARGS": "bitnet model co", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    listed = call(env=os.environ | values)
    assert {"compat", "compare", "convert"} <= set(listed.stdout.replace('"', " ").replace(":", " ").split())


def test_output_is_plain_in_a_pipe():
    done = call("model", "info", TINY, env=os.environ | {"FORCE_COLOR": "", "NO_COLOR": "1"})
    assert "\x1b" not in done.stdout + done.stderr
    assert all(line == line.rstrip() for line in done.stdout.splitlines())
