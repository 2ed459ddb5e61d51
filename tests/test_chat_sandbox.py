import io
import json
import subprocess
import sys
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from bitnet import chat_sandbox
from bitnet.chat_sandbox import TemplateFaultError, TemplateRefusalError

NOW = datetime(2026, 1, 2, tzinfo=UTC)
REQUEST = {"messages": [{"role": "user", "content": "Hi"}], "bos_token": "<s>", "eos_token": "</s>",
           "add_generation_prompt": True}  # fmt: skip


def render(template):
    return chat_sandbox.render(template, now=NOW, **REQUEST)


def test_what_a_template_sees():
    assert render("{{ bos_token }}{{ messages[0].content }}{{ strftime_now('%d') }}{{ eos_token }}") == "<s>Hi02</s>"


@pytest.mark.parametrize(
    "template", ["{% if", "{{ ''.__class__.__mro__ }}", "{{ 2 ** 9 }}", "{{ 'x' * 99999999 }}", "{{ [1].append(2) }}"]
)
def test_what_it_may_not(template):
    with pytest.raises(TemplateFaultError):
        render(template)


def test_what_it_says_against_the_messages():
    with pytest.raises(TemplateRefusalError, match="no system"):
        render("{{ raise_exception('no system') }}")


def test_one_line_in_one_line_out(monkeypatch):
    templates = ["{{ bos_token }}\n€", "{% if", "{{ raise_exception('no') }}", "last"]
    lines = [json.dumps(REQUEST | {"template": t, "now": NOW.isoformat()}) + "\n" for t in templates]
    out = io.BytesIO()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO("".join(lines).encode())))
    monkeypatch.setattr("sys.stdout", SimpleNamespace(buffer=out))
    monkeypatch.setattr("resource.setrlimit", lambda *limits: None)
    chat_sandbox.serve()
    ready, *answers = [json.loads(line) for line in out.getvalue().splitlines()]
    assert ready == {"ready": True}
    assert answers[0] == {"text": "<s>\n€"}
    assert "not valid Jinja" in answers[1]["fault"]
    assert answers[2:] == [{"refusal": "no"}, {"text": "last"}]


def test_the_process_is_light():
    code = "import sys, bitnet.chat_sandbox; print('numpy' in sys.modules or 'tokenizers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
