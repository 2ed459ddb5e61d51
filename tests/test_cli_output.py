"""Tables, documents, sizes and bars."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet.cli import output
from bitnet.errors import GGUFError


class Screen(io.StringIO):
    def isatty(self):
        return True


ROWS = [("blk.0", "7"), ("a name that is rather long " * 5, "12345")]


def test_a_table_in_a_pipe_has_a_line_a_row_and_no_blanks_at_the_end(capsys):
    output.table(("name", "n"), ROWS, right=(1,))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line == line.rstrip() for line in lines)
    assert lines[1].split() == ["blk.0", "7"]
    assert lines[1].endswith("    7")


def test_a_table_on_a_screen_keeps_to_its_width(monkeypatch):
    screen = Screen()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    output.table(("name", "n"), ROWS)
    assert all(len(line) <= 80 for line in screen.getvalue().splitlines())
    assert "\x1b" not in screen.getvalue()
    assert "─" not in screen.getvalue()


def test_markup_in_a_name_is_text(capsys):
    output.facts({"name": "[bold]x[/bold] :smile:"})
    assert "[bold]x[/bold] :smile:" in capsys.readouterr().out


def test_nothing_is_a_table_without_rows(capsys):
    output.table((), [])
    output.table(("a", "b"), [])
    assert capsys.readouterr().out.split() == ["a", "b"]


@given(st.integers(0, 1 << 60))
def test_sizes(n):
    text = output.megabytes(n)
    value, unit = text.split()
    assert float(value) * {"kB": 1e3, "MB": 1e6, "GB": 1e9}[unit] == pytest.approx(n, rel=0.06, abs=51)


def test_documents():
    assert json.loads(output.document("x-1", {"ü": [1]})) == {"schema": "urn:bitnet-crossval:x-1", "ü": [1]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        output.document("x-1", {"a": float("nan")})


def test_an_error_as_a_document():
    error = GGUFError("is bent", path="m.gguf", field="version", offset=4)
    values = json.loads(output.error_document(error, 3))
    assert values["where"] == "m.gguf at byte 4 (version)"
    assert values["exit_code"] == 3


@pytest.mark.parametrize(("terminal", "quiet", "term", "shown"), [
    (True, False, "xterm", True),
    (True, True, "xterm", False),
    (True, False, "dumb", False),
    (False, False, "xterm", False),
])  # fmt: skip
def test_a_bar_is_for_screens(terminal, quiet, term, shown, monkeypatch):
    stream = Screen() if terminal else io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", term)
    with output.progress("name", quiet=quiet, rate="line") as bar:
        task = bar.add_task("going", total=3, name="one")
        bar.advance(task)
    assert bool(stream.getvalue()) == shown


@given(st.text())
def test_nothing_out_of_a_file_commands_a_terminal(text):
    shown = output.visible(text)
    assert all(letter.isprintable() or letter == "\n" for letter in shown)
    assert output.visible(shown) == shown
    assert json.loads(f'"{shown}"' if '"' not in text and "\\" not in text and "\n" not in text else '""') in (text, "")


def test_names_of_models_are_shown_with_their_controls_written_out(capsys):
    output.facts({"name": "evil\x1b[2J\u202e"})
    output.note("\x1b]0;title\x07")
    shown = capsys.readouterr()
    assert shown.out == "name  evil\\u001b[2J\\u202e\n"
    assert shown.err == "note: \\u001b]0;title\\u0007\n"
