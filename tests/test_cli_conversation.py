"""A conversation: turns, commands, stopping, and a context that is full."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from command_line import TINY, schema
from hypothesis import given
from hypothesis import strategies as st

import bitnet
from bitnet import GenerationConfig, UsageError
from bitnet.cli.conversation import Conversation, Quit, Stopping, read_messages

QUESTION = "Tom has a red kite. Who has the red kite?"


@pytest.fixture(scope="module")
def model():
    with bitnet.load(TINY) as loaded:
        yield loaded


@pytest.fixture
def talk(model):
    return Conversation(model, GenerationConfig(max_new_tokens=16))


def roles(talk):
    return [m["role"] for m in talk.messages]


def test_a_question_and_its_answer_become_turns(talk, model, capsys):
    talk.handle(QUESTION)
    assert roles(talk) == ["user", "assistant"]
    alone = model.generate([{"role": "user", "content": QUESTION}], max_new_tokens=16).text
    assert capsys.readouterr().out == f"{alone}\n"
    assert talk.messages[1]["content"] == alone.strip()
    talk.handle("And now?")
    assert roles(talk) == ["user", "assistant"] * 2


def test_the_turns_before_are_in_the_prompt(talk, model):
    talk.handle(QUESTION)
    before = list(talk.messages)
    talk.handle("Who?")
    due = model.generate([*before, {"role": "user", "content": "Who?"}], max_new_tokens=16).text
    assert talk.messages[-1]["content"] == due.strip()


def test_system_clear_undo_retry(talk, capsys):
    talk.handle("/system Be brief.")
    talk.handle(QUESTION)
    answer = talk.messages[-1]
    assert roles(talk) == ["system", "user", "assistant"]
    talk.handle("/retry")
    assert roles(talk) == ["system", "user", "assistant"]
    assert talk.messages[-1] == answer  # greedy, as it says
    assert "most likely token" in capsys.readouterr().err
    talk.handle("/undo")
    assert roles(talk) == ["system"]
    talk.handle(QUESTION)
    talk.handle("/clear")
    assert roles(talk) == ["system"]
    talk.handle("/system")
    assert roles(talk) == []


def test_retry_draws_anew(model):
    talk = Conversation(model, GenerationConfig(max_new_tokens=24, temperature=2.0))
    talk.handle(QUESTION)
    said = {talk.messages[-1]["content"]}
    for _ in range(5):
        talk.handle("/retry")
        said.add(talk.messages[-1]["content"])
    assert len(said) > 1
    assert roles(talk) == ["user", "assistant"]


@pytest.mark.parametrize("text", ["/undo", "/retry", "/nonsense", "/save", "/load", "/load none.json", "/save no/x"])
def test_what_cannot_be_done_is_said_and_changes_nothing(text, talk, capsys):
    talk.handle(text)
    assert talk.messages == []
    said = capsys.readouterr()
    assert said.err
    assert said.out == ""


@pytest.mark.parametrize("error", [BrokenPipeError(errno.EPIPE, "Broken pipe"), OSError(errno.ENOSPC, "No space left")])
def test_an_answer_that_nobody_takes_ends_the_conversation(error, talk, monkeypatch):
    class Gone(io.StringIO):
        def write(self, _text):
            raise error

    monkeypatch.setattr(sys, "stdout", Gone())
    with pytest.raises(OSError, match=error.strerror):
        talk.handle(QUESTION)


def test_a_disk_that_takes_nothing_leaves_what_was_saved_before(talk, tmp_path, capsys, monkeypatch):
    path = tmp_path / "talk.json"
    talk.handle(f"/save {path}")
    before = path.read_bytes()
    write = Path.write_text

    def full(self, text, **settings):
        write(self, text[:5], **settings)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    capsys.readouterr()
    talk.handle(f"/save {path}")
    assert f"{path}: No space left on device" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_conversation_replaces_files_alone(talk, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    for name, words in (("pipe", "is a device, a pipe or a socket"), (".", "is a folder"), ("no/x", "no such folder")):
        talk.handle(f"/save {tmp_path / name}")
        assert words in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


def test_help_and_stats(talk, capsys):
    talk.handle("/help")
    talk.handle(QUESTION)
    talk.handle("/stats")
    said = capsys.readouterr().err
    for command in ("/help", "/clear", "/system", "/save", "/load", "/undo", "/retry", "/stats", "/quit"):
        assert command in said
    assert "1 exchanges" in said
    assert "of 512 tokens" in said
    assert "last answer: " in said


def test_quit_and_slashes(talk):
    with pytest.raises(Quit):
        talk.handle("/quit")
    talk.handle("//etc is a folder")
    assert talk.messages[0]["content"] == "/etc is a folder"
    talk.handle("   ")
    assert len(talk.messages) == 2


def test_saved_and_loaded(talk, tmp_path, model):
    path = tmp_path / "talk.json"
    talk.handle("/system Be brief, \udcff.")  # a byte that is no text
    talk.handle(QUESTION)
    talk.handle(f"/save {path}")
    schema("infer-chat-1").validate(json.loads(path.read_text()))
    other = Conversation(model, talk.config)
    other.handle(f"/load {path}")
    assert other.messages == talk.messages


@given(
    st.binary(max_size=200) | st.sampled_from([b'{"messages": [{"role": "x", "content": "a"}]}', b'{"messages": 3}'])
)
def test_a_file_that_is_no_conversation_is_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("chat") / "x.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"/save"):
        read_messages(path)


def test_a_full_context_is_told_and_the_turns_are_kept(talk, capsys):
    talk.handle(QUESTION)
    before = list(talk.messages)
    talk.handle("duck " * 600)
    said = capsys.readouterr().err
    assert "there is no room for this message" in said
    assert "/undo takes back the last exchange, /clear begins anew" in said
    assert talk.messages == before


def test_an_answer_that_meets_the_end_of_the_context_says_so(model, capsys):
    talk = Conversation(model, GenerationConfig(max_new_tokens=600, ignore_eos=True))
    talk.handle(QUESTION)
    assert "the context is full" in capsys.readouterr().err
    assert roles(talk) == ["user", "assistant"]


def test_ctrl_c_ends_the_answer_and_keeps_what_came(model, capsys, monkeypatch):
    talk = Conversation(model, GenerationConfig(max_new_tokens=400, ignore_eos=True))
    write = bitnet.cli.conversation.sys.stdout.write
    shown = []

    def interrupting(text):
        shown.append(text)
        if len(shown) == 3:
            signal.raise_signal(signal.SIGINT)
        return write(text)

    monkeypatch.setattr(bitnet.cli.conversation.sys.stdout, "write", interrupting)
    before = signal.getsignal(signal.SIGINT)
    talk.handle(QUESTION)
    assert signal.getsignal(signal.SIGINT) is before
    assert talk.last.stop_reason == "cancelled"
    assert 0 < len(talk.last.ids) < 20
    assert roles(talk) == ["user", "assistant"]
    assert "stopped; what came is kept" in capsys.readouterr().err


def test_a_second_ctrl_c_does_not_wait():
    with Stopping() as stopping:
        signal.raise_signal(signal.SIGINT)
        assert stopping.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
