"""Files of prompts and of answers: what a line may ask, and what a killed run leaves behind."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet import batch_file
from bitnet.batch_file import Identity, Journal, Line, digest_of, encode, parse, read_lines
from bitnet.errors import UsageError

RUN = Identity(model="a" * 16, settings="b" * 16)


def lines_of(*texts):
    return list(read_lines(io.BytesIO("".join(f"{t}\n" for t in texts).encode())))


def record(line, run=RUN, **changes):
    made = {"line": line.number, "id": None, "input": line.digest, "model": run.model, "settings": run.settings}
    return made | {"text": f"é {line.number}", "error": None} | changes


def line(text):
    return Line(number=1, raw=text.encode())


LINES = lines_of(*(json.dumps({"prompt": "x" * (7 * i)}) for i in range(6)))
WHOLE = b"".join(encode(record(each)) for each in LINES)


def test_blank_lines_ask_nothing_but_count():
    found = list(read_lines(io.BytesIO(b'\n{"a": 1}\r\n   \n\n{"b": 2}')))
    assert [(each.number, each.raw) for each in found] == [(2, b'{"a": 1}'), (5, b'{"b": 2}')]


def test_a_line_without_end_is_refused_not_read(monkeypatch):
    monkeypatch.setattr(batch_file, "MAX_LINE", 64)
    found = list(read_lines(io.BytesIO(b"x" * 10_000 + b'\n{"prompt": "y"}\n')))
    assert [each.number for each in found] == [1, 2]
    assert len(found[0].raw) == 65
    with pytest.raises(UsageError, match="longer than 64 bytes"):
        parse(found[0])


@pytest.mark.parametrize(
    ("text", "prompt", "settings"),
    [
        ('{"prompt": "a", "id": "x"}', "a", {}),
        ('{"ids": [1, 2], "max_new_tokens": 3, "stop": ["."]}', [1, 2], {"max_new_tokens": 3, "stop": ["."]}),
        ('{"messages": [{"role": "user", "content": "b"}]}', [{"role": "user", "content": "b"}], {}),
    ],
)
def test_what_a_line_may_ask(text, prompt, settings):
    found = parse(line(text))
    assert (found.prompt, found.settings) == (prompt, settings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "is not an object"),
        ("{}", "has no prompt"),
        ('{"prompt": "a", "ids": [1]}', "has prompt and ids"),
        ('{"prompt": 1}', "'prompt' that is not a string"),
        ('{"ids": []}', "'ids' that is not a list"),
        ('{"ids": [true]}', "'ids' that is not a list"),
        ('{"messages": ["a"]}', "'messages' that is not a list"),
        ('{"prompt": "a", "temperatur": 1}', "'temperatur' that is not known"),
        ('{"prompt": "a", "id": [1]}', "an id that is"),
    ],
)
def test_what_a_line_may_not(text, message):
    with pytest.raises(UsageError, match=message) as caught:
        parse(line(text))
    assert caught.value.remedy


@given(st.integers(0, len(WHOLE)))
def test_a_file_cut_anywhere_is_repaired_and_finished_to_the_same_bytes(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "answers.jsonl"
    path.write_bytes(WHOLE[:cut])
    rest = iter(LINES)
    with Journal(path) as journal:
        journal.resume(rest, RUN)
        assert journal.done == WHOLE[:cut].count(b"\n")
        assert journal.cut == cut - (WHOLE[:cut].rfind(b"\n") + 1)
        for each in rest:
            journal.append(record(each))
    assert path.read_bytes() == WHOLE


def test_a_half_line_longer_than_a_block_is_cut_off(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_bytes(WHOLE[:-1] + b"x" * 300_000)
    with Journal(path) as journal:
        assert path.stat().st_size > 300_000  # nothing is cut before it is known whose file it is
        journal.resume(iter(LINES), RUN)
        assert journal.done == 5
        assert journal.cut > 300_000
    assert path.read_bytes() == WHOLE[: WHOLE[:-1].rfind(b"\n") + 1]


@pytest.mark.parametrize(
    ("lines", "run", "content", "message"),
    [
        (lines_of("a", "b"), RUN, None, "belongs to another prompt"),
        (LINES[:3], RUN, None, "more answers than there are prompts"),
        (LINES, Identity(model="c" * 16, settings=RUN.settings), None, "another model or tokenizer"),
        (LINES, Identity(model=RUN.model, settings="c" * 16), None, "other settings"),
        (LINES, RUN, b"hello\n", "its line 1 is not an answer"),
        (LINES, RUN, b"{}\n", "its line 1 is not an answer"),
        (LINES, RUN, b"3\n", "its line 1 is not an answer"),
        (LINES, RUN, b'{"schema": "x"}\n', "its line 1 is not an answer"),
        (LINES, RUN, b"[" * 100_000 + b"\n", "its line 1 is not an answer"),
        (LINES, RUN, b"hello\nand a tail", "its line 1 is not an answer"),
        (LINES, RUN, b'{"prompt": "a"}', "its line 1 has no end and is not the beginning"),
        (LINES, RUN, WHOLE + b"\0\xff", "its line 7 has no end and is not the beginning"),
        (lines_of("a"), RUN, WHOLE[:-9], "belongs to another prompt"),
    ],
)
def test_answers_of_another_run_are_refused_and_untouched(lines, run, content, message, tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_bytes(WHOLE if content is None else content)
    before = path.read_bytes()
    with Journal(path) as journal, pytest.raises(UsageError, match=message) as caught:
        journal.resume(iter(lines), run)
    assert "--overwrite" in caught.value.remedy
    assert path.read_bytes() == before
    with Journal(path, overwrite=True) as journal:
        journal.resume(iter(lines), run)
        assert journal.done == 0


def test_an_id_that_utf8_has_no_bytes_for_comes_back_as_it_was():
    raw = encode(record(LINES[0], id="é \ud800"))
    assert raw.endswith(b"\n")
    assert json.loads(raw.decode())["id"] == "é \ud800"


def test_prompts_may_be_added_and_errors_are_counted(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_bytes(encode(record(LINES[0])) + encode(record(LINES[1], error={"what": "x"})))
    rest = iter(LINES)
    with Journal(path) as journal:
        journal.resume(rest, RUN)
        assert (journal.done, journal.failed) == (2, 1)
    assert next(rest).number == 3


@pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
def test_what_keeps_no_answers_is_refused(kind, tmp_path):
    path = Path("/dev/full") if kind == "device" else tmp_path / "answers"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(UsageError, match="is not a file") as caught:
        Journal(path)
    assert "standard output" in caught.value.remedy


def test_the_null_device_takes_answers(tmp_path):
    with Journal(Path(os.devnull)) as journal:
        journal.resume(iter(LINES), RUN)
        journal.append(record(LINES[0]))
        assert journal.done == 0


def _hold(path, opened, leave):
    with Journal(path):
        opened.set()
        leave.wait(30)


def test_one_run_at_a_time(tmp_path):
    path = tmp_path / "answers.jsonl"
    context = multiprocessing.get_context("spawn")
    opened, leave = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(path, opened, leave))
    other.start()
    try:
        assert opened.wait(30)
        with pytest.raises(UsageError, match="another run"):
            Journal(path)
    finally:
        leave.set()
        other.join()


def test_digests_do_not_depend_on_the_order_of_fields():
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1}) != digest_of({"a": 1, "b": 3})
    assert len(digest_of(b"")) == 16
