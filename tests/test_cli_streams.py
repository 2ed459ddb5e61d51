"""The standard streams: whatever is read or written, closed or full, a command ends as it should."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest
from command_line import ROOT, TINY, run, validated

from bitnet.cli import streams

INFER = ("infer", "run", "-m", TINY, "-n", "2")
NO_TEXT = "One \udcff day"  # what Python makes of the byte ff


def test_bytes_that_are_no_text_are_a_prompt_with_replacement_characters():
    due = run(*INFER, "-q", "-p", "One \ufffd day").out
    assert run(*INFER, "-q", "-p", NO_TEXT).out == due
    assert run(*INFER, "-q", "-p", "-", stdin=NO_TEXT).out == due
    assert run(*INFER, "-p", NO_TEXT).out == "One \\udcff day" + due
    assert run("infer", "chat", "-m", TINY, "-q", "-n", "2", stdin=f"{NO_TEXT}\n").code == 0
    assert validated(run("model", "info", f"{NO_TEXT}.gguf", "--format", "json").out)["where"] == f"{NO_TEXT}.gguf"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_an_encoding_has_no_bytes_for_is_escaped_so_that_documents_stay_documents(encoding, monkeypatch):
    text = "é € 😀 \udcff"
    made = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(made, encoding=encoding))
    streams.prepare()
    print(json.dumps(text, ensure_ascii=False), flush=True)
    assert json.loads(made.getvalue().decode(encoding)) == text


def test_a_stream_that_was_read_from_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\nb\n"), encoding="utf-8"))
    assert sys.stdin.readline() == "a\n"
    streams.prepare()
    assert sys.stdin.readline() == "b\n"


def redirected(redirection, *arguments):
    """A command as a shell runs it with a redirection."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-m", "bitnet", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": ""},  # what is not taken is then met again at the end of the process
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("more", [[], ["--format", "json"]])
def test_a_result_that_a_full_disk_does_not_take_is_code_6(more):
    done = redirected(">/dev/full", "model", "info", TINY, "--tensors", *more)
    assert done.returncode == 6
    assert done.stderr == "bitnet: the disk is full\n  hint: make room and run it again\n"


@pytest.mark.parametrize("redirection", [">/dev/full", ">/dev/full 2>&1", "2>/dev/full", ">&-", "2>&-"])
@pytest.mark.parametrize("more", [[], ["--format", "json"]])
def test_a_failure_that_cannot_be_told_keeps_its_code(redirection, more):
    done = redirected(redirection, "model", "info", "none.gguf", *more)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    if redirection == ">/dev/full":
        assert "there is no such file" in done.stderr


def test_so_does_one_whose_reader_has_left():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "bitnet", "model", "info", "none.gguf", "--format", "json"]
    with os.fdopen(write, "wb") as pipe:
        done = subprocess.run(command, cwd=ROOT, stdout=pipe, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 3
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("redirection", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_empty_and_swallow(redirection, tmp_path):
    prompts, answers = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"prompt": "One", "max_new_tokens": 1}\n')
    done = redirected(redirection, "infer", "batch", prompts, "-o", answers, "-m", TINY)
    assert (done.returncode, done.stdout) == (0, "")
    assert len(answers.read_text().splitlines()) == 1
    if "<" in redirection:  # nothing is asked
        assert redirected(redirection, "infer", "batch", "-", "-o", answers, "-m", TINY, "--overwrite").returncode == 0
        assert answers.read_bytes() == b""
