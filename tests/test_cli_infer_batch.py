"""`bitnet infer batch`: answers in order, each once, whatever happens in between."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from command_line import MODELS, ROOT, TINY, run, schema, validated

ANSWER = schema("infer-batch-1")
STARTS = ("One day Anna", "The duck", "Tom has a red kite", "In the park")


def prompts(n):
    """Lines of every kind: text, ids, chat, settings of their own, and some that are bad."""
    kinds = [
        lambda i: {"id": i, "prompt": STARTS[i % 4], "max_new_tokens": 5 + i % 7},
        lambda i: {"id": f"chat {i}", "messages": [{"role": "user", "content": STARTS[i % 4]}]},
        lambda i: {"ids": [1009, 776, 438 + i % 3], "temperature": 0.8, "seed": i},
        lambda i: {"prompt": i} if i % 3 else {"prompt": "x", "max_new_tokens": -1},
        lambda i: {"id": i, "prompt": STARTS[i % 4]},
    ]
    return [json.dumps(kinds[i % 5](i)) for i in range(n)]


@pytest.fixture
def asked(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(prompts(10)) + "\n")
    return path


def batch(asked, *more, out=None):
    out = out if out is not None else asked.with_name("out.jsonl")
    return run("infer", "batch", asked, "-o", out, "-m", TINY, "-n", "12", *more)


def answers(asked):
    return [json.loads(line) for line in asked.with_name("out.jsonl").read_text().splitlines()]


def test_every_line_is_answered_in_order(asked):
    done = batch(asked)
    assert done.code == 1  # some lines are bad
    found = answers(asked)
    for answer in found:
        ANSWER.validate(answer)
    assert [a["line"] for a in found] == list(range(1, 11))
    assert [a["id"] for a in found] == [0, "chat 1", None, None, 4, 5, "chat 6", None, None, 9]
    assert [a["error"] is not None for a in found] == [False, False, False, True, False] * 2
    assert found[0]["text"]
    assert len(found[0]["ids"]) <= 5
    assert found[3]["error"]["what"] == "max_new_tokens is -1"
    assert found[8]["error"]["where"] == "line 9"
    assert "10 answers written, 2 errors" in done.err


def test_an_answer_is_what_the_prompt_gives_alone(asked):
    import bitnet

    batch(asked, "--batch-size", "4")
    model = bitnet.load(TINY)
    found = answers(asked)
    assert found[0]["text"] == model.generate(STARTS[0], max_new_tokens=5).text
    assert found[2]["ids"] == list(model.generate([1009, 776, 440], max_new_tokens=12, temperature=0.8, seed=2).ids)


@pytest.mark.parametrize("size", [1, 3, 100])
def test_the_file_has_the_same_bytes_for_every_batch_size(asked, size):
    batch(asked, out=asked.with_name("usual.jsonl"))
    batch(asked, "--batch-size", size)
    assert asked.with_name("out.jsonl").read_bytes() == asked.with_name("usual.jsonl").read_bytes()


def test_a_second_run_adds_nothing_and_says_so(asked):
    batch(asked)
    before = asked.with_name("out.jsonl").read_bytes()
    document = validated(batch(asked, "--format", "json").out)
    assert {k: document[k] for k in ("prompts", "resumed", "written", "errors")} == {
        "prompts": 10,
        "resumed": 10,
        "written": 0,
        "errors": 2,
    }
    assert asked.with_name("out.jsonl").read_bytes() == before


@pytest.mark.parametrize("change", ["input", "settings", "model", "tokenizer"])
def test_another_run_is_refused_unless_it_may_overwrite(asked, change):
    batch(asked)
    before = asked.with_name("out.jsonl").read_bytes()
    more = {
        "settings": ["--temperature", "0.5"],
        "model": ["--model", str(MODELS / "tiny-silu.i2_s.gguf")],
        "tokenizer": ["--device", "cpu"],
    }.get(change, [])
    if change == "input":
        asked.write_text(asked.read_text().replace("The duck", "The goose", 1))
    if change == "tokenizer":  # an unchanged run goes on
        assert batch(asked, *more).code == 1
        return
    done = batch(asked, *more)
    assert done.code == 2
    assert "--overwrite" in done.err
    assert asked.with_name("out.jsonl").read_bytes() == before
    assert batch(asked, *more, "--overwrite").code == 1
    assert asked.with_name("out.jsonl").read_bytes() != before


def test_stop_on_error_keeps_what_came_before_and_goes_on_once_mended(asked):
    done = batch(asked, "--stop-on-error")
    assert done.code == 1
    assert f"{asked}, line 4: max_new_tokens is -1" in done.err
    assert len(answers(asked)) == 3
    asked.write_text(asked.read_text().replace('"max_new_tokens": -1', '"max_new_tokens": 1'))
    assert f"{asked}, line 9: " in batch(asked, "--stop-on-error").err
    assert len(answers(asked)) == 8


def test_pipes(asked):
    to_file = batch(asked)
    done = run("infer", "batch", "-", "-o", "-", "-m", TINY, "-n", "12", "-q", stdin=asked.read_text())
    assert done.code == to_file.code
    assert done.out == asked.with_name("out.jsonl").read_text()
    assert done.err == ""


def test_a_pipe_with_a_name_is_read_as_one(asked, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(asked.read_bytes(),), daemon=True)
    writer.start()
    done = run("infer", "batch", pipe, "-o", tmp_path / "of-pipe.jsonl", "-m", TINY, "-n", "12")
    batch(asked)
    assert "10 answers written, 2 errors" in done.err
    assert (tmp_path / "of-pipe.jsonl").read_bytes() == asked.with_name("out.jsonl").read_bytes()


def test_values_that_cannot_be_written_or_computed_with_stop_nothing(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text(
        '{"prompt": "One", "id": "\\ud800"}\n'
        f'{{"prompt": "One", "temperature": 1{400 * "0"}}}\n'
        f'{{"prompt": "One", "top_p": 1{400 * "0"}}}\n'
        f'{{"prompt": "One", "repetition_penalty": 1{400 * "0"}}}\n'
        '{"prompt": "The duck"}\n'
    )
    assert batch(path).code == 1
    found = answers(path)
    assert found[0]["id"] == "\ud800"
    assert [a["error"] is None for a in found] == [True, False, False, False, True]


def test_answers_in_a_pipe_are_utf8_whatever_the_terminal_s_encoding(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "One", "id": "é €", "max_new_tokens": 1}\n')
    batch(path)
    command = [sys.executable, "-m", "bitnet", "infer", "batch", str(path), "-o", "-", "-m", TINY, "-n", "12"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": "latin-1"}, stdout=subprocess.PIPE)
    assert done.stdout == path.with_name("out.jsonl").read_bytes()


def test_a_prompt_too_long_for_the_context_is_an_error_of_its_line(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps({"prompt": "duck " * 2000}) + "\n" + json.dumps({"prompt": "The duck"}) + "\n")
    assert batch(path).code == 1
    first, second = answers(path)
    assert first["error"]["error"] == "ContextLengthError"
    assert second["error"] is None


def test_a_lack_of_memory_is_no_answer(monkeypatch, asked):
    texts = ["The duck", 1, "duck " * 200, "duck " * 2000, "In the park"]
    asked.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    with monkeypatch.context() as little:
        little.setattr("bitnet.runtime.pool_pages", lambda *_: 2)  # 128 tokens
        done = batch(asked)
    assert done.code == 6
    assert f"{asked}, line 3: " in done.err
    assert "do not fit in the KV cache of 128" in done.err
    assert [a["error"] is None for a in answers(asked)] == [True, False]
    assert batch(asked).code == 1
    assert [a["error"] is None for a in answers(asked)] == [True, False, True, False, True]
    batch(asked, out=asked.with_name("usual.jsonl"))
    assert asked.with_name("out.jsonl").read_bytes() == asked.with_name("usual.jsonl").read_bytes()


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
@pytest.mark.parametrize("named", ["by its name", "by a link", "by a hard link"])
def test_answers_do_not_go_into_the_file_of_prompts(named, more, tmp_path):
    asked, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    asked.write_text('{"prompt": "One"}')  # without an end, it was taken for half an answer
    if named == "by a link":
        out.symlink_to(asked)
    elif named == "by a hard link":
        out.hardlink_to(asked)
    done = batch(asked, *more, out=asked if named == "by its name" else out)
    assert done.code == 2
    assert "prompts and answers are the same file" in done.err
    assert asked.read_text() == '{"prompt": "One"}'


@pytest.mark.parametrize("named", ["by its name", "by a link", "by a hard link"])
@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_answers_do_not_go_into_the_model(named, more, tmp_path):
    """It is mapped: a file that is cut off under it would end the process."""
    asked, model, out = (tmp_path / name for name in ("in.jsonl", "m.gguf", "out.jsonl"))
    asked.write_text('{"prompt": "One"}\n')
    model.write_bytes(Path(TINY).read_bytes())
    if named == "by a link":
        out.symlink_to(model)
    elif named == "by a hard link":
        out.hardlink_to(model)
    done = run("infer", "batch", asked, "-o", model if named == "by its name" else out, "-m", model, *more)
    assert done.code == 2
    assert "the model is read from it" in done.err
    assert model.read_bytes() == Path(TINY).read_bytes()


@pytest.mark.parametrize("arguments", ['- -o "$1" < "$1"', '"$1" -o - >> "$1"'])
def test_nor_through_a_redirection(arguments, tmp_path):
    asked = tmp_path / "in.jsonl"
    asked.write_text('{"prompt": "One"}\n')
    command = f'"$0" -m bitnet infer batch {arguments} -m "$2"'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, asked, TINY], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "prompts and answers are the same file" in done.stderr
    assert asked.read_text() == '{"prompt": "One"}\n'


def test_a_file_of_something_else_keeps_its_tail(asked, tmp_path):
    for content in (b"# Notes\ntail without newline", b"GGUF\3\0\0\0", b'{"prompt": "One"}'):
        other = tmp_path / "other"
        other.write_bytes(content)
        done = batch(asked, out=other)
        assert done.code == 2
        assert "--overwrite" in done.err
        assert other.read_bytes() == content


@pytest.mark.parametrize(
    ("name", "out", "message"),
    [("none", "out", "no such file"), ("", "out", "is a folder"), ("in", "no/out", "No such")],
)
def test_paths_that_do_not_exist(name, out, message, tmp_path):
    (tmp_path / "in").write_text('{"prompt": "a"}\n')
    done = run("infer", "batch", tmp_path / name, "-o", tmp_path / out, "-m", TINY)
    assert done.code == 2
    assert message in done.err


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("seed", range(2))
def test_a_run_that_is_killed_again_and_again_gives_the_file_of_one_that_was_not(seed, tmp_path):
    draw = random.Random(seed)
    asked, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    asked.write_text("\n".join(prompts(120)) + "\n")
    batch(asked, out=tmp_path / "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    kills = repaired = 0
    for attempt in range(8):
        command = ["infer", "batch", str(asked), "-o", str(out), "-m", TINY, "-n", "12"]
        command += ["--batch-size", str(draw.choice((1, 3, 8)))]
        size = out.stat().st_size if out.exists() else 0
        child = subprocess.Popen(
            [sys.executable, "-m", "bitnet", *command], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        while child.poll() is None and (not out.exists() or out.stat().st_size <= size):
            time.sleep(0.001)
        if attempt < 7:  # the last run may finish
            time.sleep(draw.uniform(0, 0.3))
            child.send_signal(signal.SIGKILL)
        _, errors = child.communicate(timeout=60)
        assert b"Traceback" not in errors
        if child.returncode >= 0:
            assert child.returncode == 1  # the bad lines
            break
        kills += 1
        content = out.read_bytes()
        assert whole.startswith(content[: content.rfind(b"\n") + 1])
        if draw.random() < 0.5:  # a power cut in the middle of a line
            repaired += 1
            os.truncate(out, draw.randint(max(0, len(content) - 400), len(content)))
    assert kills >= 2
    assert out.read_bytes() == whole
    assert repaired


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_an_interrupt_leaves_whole_lines_and_130(tmp_path):
    asked, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    asked.write_text("\n".join(prompts(400)) + "\n")
    command = [sys.executable, "-m", "bitnet", "infer", "batch", str(asked), "-o", str(out), "-m", TINY]
    child = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    while child.poll() is None and (not out.exists() or out.stat().st_size == 0):
        time.sleep(0.005)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert b"Traceback" not in errors
    for line in out.read_text().splitlines(keepends=True):
        ANSWER.validate(json.loads(line))
        assert line.endswith("\n")
