import os
import signal
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bitnet import chat, chat_process
from bitnet.chat_sandbox import TemplateFaultError
from bitnet.errors import TokenizerError

TURNS = [{"role": "user", "content": "Hi"}]


@pytest.fixture(autouse=True)
def fresh():
    chat_process.close()
    yield
    chat_process.close()


def render(template):
    return chat.render(template, TURNS, bos_token="<s>", eos_token="</s>", now=datetime(2026, 1, 2, tzinfo=UTC))


def pid():
    return chat_process._process._child.pid


@pytest.mark.parametrize(
    "template",
    [
        "{% set s = 'x' * 9999 %}{% for a in s %}{% for b in s %}{% for c in s %}{% endfor %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% set s = 'x' * 9999999 %}{% for a in range(99999) %}{% if s.count('y') %}{% endif %}{% endfor %}",
    ],
    ids=["loops", "recursion", "long calls"],
)
def test_a_template_that_runs_long_is_stopped(template, monkeypatch):
    assert render("a") == "a"
    monkeypatch.setattr(chat_process, "TIME_LIMIT", 0.3)
    before = time.monotonic()
    with pytest.raises(TokenizerError, match=r"the chat template takes longer than 0\.3 seconds"):
        render(template)
    assert time.monotonic() - before < 60  # seconds: each of these would run for hours
    monkeypatch.undo()
    assert render("b") == "b"  # the next one gets a process of its own


@pytest.mark.parametrize(
    "template",
    [
        "{% set n = namespace(x=[1]) %}{% for i in range(50) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
        "{% set n = namespace(x='x') %}{% for i in range(50) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x | length }}",
        "{{ '%1000000000000d' | format(1) }}",
        "{{ 'x'.ljust(100000000000) }}",
        "{{ ('x' * 9999999).replace('x', 'y' * 9999999) }}",
    ],
    ids=["nested lists", "doubling", "format", "padding", "replacing"],
)
def test_a_template_that_fills_the_memory_is_stopped(template, monkeypatch):
    monkeypatch.setattr(chat_process, "TIME_LIMIT", 1.0)
    with pytest.raises(TokenizerError, match=r"memory|takes longer|makes more than|fails"):
        render(template)
    monkeypatch.undo()
    assert render("b") == "b"


def test_one_process_serves_all():
    assert render("{{ bos_token }}{{ strftime_now('%Y') }}") == "<s>2026"
    first = pid()
    assert [render(f"{{{{ {i} }}}}") for i in range(20)] == [str(i) for i in range(20)]
    assert pid() == first


def test_no_process_is_needed_for_the_form_known_here():
    assert render(chat.BITNET_B158) == "<s>User: Hi<|eot_id|>Assistant:"
    assert chat_process._process is None


def test_a_process_that_died_is_replaced():
    render("a")
    os.kill(pid(), signal.SIGKILL)
    chat_process._process._child.wait()
    assert render("b") == "b"


def test_a_process_that_dies_at_work_is_a_fault():
    render("a")
    threading.Timer(0.2, os.kill, (pid(), signal.SIGKILL)).start()
    with pytest.raises(TokenizerError, match="memory"):
        render("{% set s = 'x' * 9999 %}{% for a in s %}{% for b in s %}{% endfor %}{% endfor %}")


def test_an_interrupt_leaves_no_half_answer(monkeypatch):
    render("a")
    process = chat_process._process

    def interrupted(limit):
        raise KeyboardInterrupt

    monkeypatch.setattr(process, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        render("first")
    assert render("second") == "second"


def test_threads_take_turns():
    found = {}

    def work(i):
        found[i] = render(f"{{{{ {i} }}}}")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: str(i) for i in range(8)}


def test_a_fork_leaves_the_process_to_its_owner():
    render("a")
    process = chat_process._process
    process.owner += 1
    assert not process.alive
    process.end()
    assert process._child.poll() is None  # it was not ours to end
    process.owner -= 1
    process._child.kill()
    process._child.wait()


def test_a_program_that_cannot_start_it_says_so(monkeypatch):
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    with pytest.raises(TemplateFaultError, match="cannot run apart"):
        chat_process.render({"template": "a"})
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(TemplateFaultError, match="cannot run apart from this program: its process ends at once"):
        chat_process.render({"template": "a"})


def test_a_program_started_beside_the_package_finds_it(monkeypatch):
    monkeypatch.setattr("sys.path", ["", *sys.path])
    monkeypatch.chdir(Path(chat.__file__).parents[1])
    assert render("a") == "a"
