"""`bitnet infer chat` as its user meets it: at a terminal, and from a pipe."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time

import pytest
from command_line import MODELS, ROOT, TINY, run

from bitnet.cli.infer_chat import message

#: The command, in a session with a terminal of its own, whose answers go on until they are stopped.
ENDLESS = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from bitnet.cli import loading
from bitnet.cli.main import main
configure = loading.configure
loading.configure = lambda *a, **s: configure(*a, ignore_eos=True, **s)
sys.exit(main(["infer", "chat", "--device", "plain", "-n", "450", *sys.argv[1:]]))
"""


class Terminal:
    """A program at a terminal: what it shows, and what is typed."""

    def __init__(self, *arguments, env):
        self.ours, theirs = pty.openpty()
        self.child = subprocess.Popen(
            [sys.executable, "-c", ENDLESS, *arguments],
            cwd=ROOT,
            env=env,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.shown = ""

    def expect(self, text, seconds=180):
        """Wait until a text was shown; what came up to it is taken away."""
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            assert time.monotonic() < deadline, (text, self.shown)
            if select.select([self.ours], [], [], 0.1)[0]:
                try:
                    self.shown += os.read(self.ours, 4096).decode(errors="replace")
                except OSError:  # the other end is closed
                    assert text in self.shown, (text, self.shown)
        before, _, self.shown = self.shown.partition(text)
        return before

    def type(self, text):
        os.write(self.ours, text.encode())

    def interrupt(self, answer, seconds=180):
        """Press Ctrl-C until it is answered: one that falls between CPython's prompt and its select waits for a key."""
        deadline = time.monotonic() + seconds
        while True:
            self.type("\x03")
            try:
                return self.expect(answer, 5)
            except AssertionError:
                if time.monotonic() >= deadline or self.child.poll() is not None:
                    raise

    def close(self):
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait()
        os.close(self.ours)


@pytest.fixture
def home(tmp_path):
    drop = ("BITNET_GGUF", "BITNET_TOKENIZER")
    return {k: v for k, v in os.environ.items() if k not in drop} | {
        "XDG_STATE_HOME": str(tmp_path),
        "TERM": "dumb",
        "INPUTRC": os.devnull,
    }


@pytest.fixture
def terminal(home):
    opened = Terminal("-m", TINY, "--preset", "greedy", env=home)
    yield opened
    opened.close()


@pytest.mark.slow
def test_an_interrupt_stops_the_answer_not_the_program(terminal, tmp_path):
    terminal.expect("> ")
    terminal.type("One day Anna went to the park.\n")
    terminal.expect("park.")
    terminal.expect(". ")  # the answer has begun
    terminal.type("\x03")
    terminal.expect("stopped; what came is kept")
    terminal.expect("> ")
    terminal.type("/stats\n")
    terminal.expect("1 exchanges")
    terminal.expect("> ")
    terminal.interrupt("/quit or Ctrl-D leaves")
    terminal.expect("> ")
    terminal.type("\x04")
    assert terminal.child.wait(30) == 0
    history = (tmp_path / "bitnet-crossval" / "chat_history").read_text()
    assert "One day Anna went to the park." in history


@pytest.mark.slow
def test_several_lines_are_one_message(terminal, tmp_path):
    path = tmp_path / "talk.json"
    terminal.expect("> ")
    terminal.type('"""\n')
    terminal.expect(". ")
    terminal.type("One day Anna\n")
    terminal.expect(". ")
    terminal.type("went to the park.\n")
    terminal.expect("park.")
    terminal.expect(". ")
    terminal.type('"""\n')
    terminal.expect(" the ")  # of the answer
    terminal.type("\x03")
    terminal.expect("stopped; what came is kept")
    terminal.expect("> ")
    terminal.type(f"/save {path}\n")
    terminal.expect("turns are in")
    assert json.loads(path.read_text())["messages"][0]["content"] == "One day Anna\nwent to the park."


def test_from_a_pipe_answers_alone_are_on_stdout():
    done = run("infer", "chat", "-m", TINY, "-n", "5", "--preset", "greedy", stdin="One day\n/stats\n/quit\nnot read\n")
    assert done.code == 0
    assert done.out.count("\n") == 1
    assert "1 exchanges" in done.err
    assert "> " not in done.out


def test_lines_may_end_as_on_windows(tmp_path):
    path = tmp_path / "talk.json"
    text = f'One day\r\n"""\r\na\r\nb\r\n"""\r\n/save {path}\r\n/quit\r\nnot read\r\n'
    done = run("infer", "chat", "-m", TINY, "-n", "2", "-q", stdin=text)
    assert done.code == 0
    assert [m["content"] for m in json.loads(path.read_text())["messages"][::2]] == ["One day", "a\nb"]


def test_a_block_without_an_end_is_answered():
    done = run("infer", "chat", "-m", TINY, "-n", "5", "--preset", "greedy", "-q", stdin='"""\nOne day\n')
    assert done.out == run("infer", "chat", "-m", TINY, "-n", "5", "--preset", "greedy", "-q", stdin="One day").out
    assert done.out.strip()


@pytest.mark.parametrize(
    ("typed", "code"),
    [
        (f"{'duck ' * 2000}\nOne day\n", 6),
        (f"/undo\n{'duck ' * 2000}\n", 2),
        ("One day\n/load /nowhere/none\n/quit\n", 2),
    ],
)
def test_from_a_pipe_what_could_not_be_done_is_told_in_the_end_too(typed, code):
    assert run("infer", "chat", "-m", TINY, "-n", "2", "-q", stdin=typed).code == code


def test_the_help_names_one_default():
    text = run("infer", "chat", "--help").out
    assert "default: 512" in text
    assert "128" not in text


def test_the_end_of_the_pipe_is_the_end():
    assert run("infer", "chat", "-m", TINY, "-q", stdin="").out == ""


def test_a_model_without_a_template_is_refused_before_anything_is_typed():
    done = run("infer", "chat", "-m", MODELS / "tiny-llama.i2_s.gguf", stdin="Hello\n")
    assert done.code == 3
    assert "tokenizer.chat_template is missing" in done.err


def test_a_saved_conversation_goes_on(tmp_path):
    path = tmp_path / "talk.json"
    run("infer", "chat", "-m", TINY, "-n", "5", "-q", stdin=f"One day\n/save {path}\n")
    done = run("infer", "chat", "-m", TINY, "-n", "5", "-q", "--load", path, stdin="/stats\n")
    assert "1 exchanges" in done.err
    assert run("infer", "chat", "-m", TINY, "--load", tmp_path / "none", stdin="").code == 2


@pytest.mark.parametrize(
    ("typed", "due"),
    [
        (["one"], "one"),
        (["one\\", "two\\", "three"], "one\ntwo\nthree"),
        (["one\\"], "one\n"),
        (['"""', "one", "", "/two", '"""'], "one\n\n/two"),
        (['"""', "one", "two"], "one\ntwo"),
        (['"""'], ""),
    ],
)
def test_messages_of_several_lines(typed, due):
    lines = iter(typed)

    def ask(_prompt):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    assert message(ask) in (due, due.rstrip("\n"))
