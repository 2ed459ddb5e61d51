"""The standard streams: whatever is read or written, closed or full, a command ends as it should."""

from __future__ import annotations

import io
import json
import sys

import pytest
from command_line import TINY, run, validated

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
