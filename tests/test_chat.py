from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet import chat
from bitnet.errors import TokenizerError, UsageError

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "2+2?"},
]
LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim "
    "+ '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def render(template, messages=TURNS, **options):
    return chat.render(template, messages, **({"bos_token": BOS, "eos_token": EOS} | options))


def file(template):
    metadata = {} if template is None else {"tokenizer.chat_template": template}
    return SimpleNamespace(metadata=metadata, path=Path("model.gguf"))


def test_the_form_of_the_2b_4t():
    assert render(chat.BITNET_B158) == (
        f"{BOS}User: Hi<|eot_id|>Assistant: Hello.<|eot_id|>User: 2+2?<|eot_id|>Assistant:"
    )
    assert render(chat.BITNET_B158, TURNS[:1], add_generation_prompt=False) == f"{BOS}User: Hi<|eot_id|>"


def test_llama_3s_template():
    assert render(LLAMA_3, [{"role": "user", "content": " Hi \n"}]) == (
        f"{BOS}<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )


@given(
    st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text()}), max_size=4)
)
def test_every_content_is_taken_as_it_is(messages):
    expected = "".join(f"[{m['role']}]{m['content']}" for m in messages)
    assert render("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}", messages) == expected


def test_content_is_no_template():
    assert render("{{ messages[0].content }}", [{"role": "user", "content": "{{ bos_token }}{% if %}"}]) == (
        "{{ bos_token }}{% if %}"
    )


def test_blocks_leave_no_blank_lines():
    assert render(
        "{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m.content }}\n  {% endif %}\n{% endfor %}"
    ) == ("Hi\n2+2?\n")


def test_what_hugging_face_provides():
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    assert render("{{ strftime_now('%d %b %Y') }}", now=moment) == "02 Jan 2026"
    assert render("{{ {'b': '<é>', 'a': [1]} | tojson }}") == '{"b": "<é>", "a": [1]}'
    assert render("{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}") == '{\n "a": 2,\n "b": 1\n}'
    assert render("{% for m in messages %}{{ m.role }}{% break %}{% endfor %}") == "user"
    assert render("a{% generation %}{{ eos_token }}{% endgeneration %}b") == f"a{EOS}b"
    assert render("{{ tools is defined }}{{ nothing }}") == "False"


def test_a_template_may_refuse_messages():
    with pytest.raises(UsageError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize("message", [{}, {"role": "user"}, {"content": "x"}, {"role": 1, "content": "x"}, "user"])
def test_a_message_needs_role_and_content(message):
    with pytest.raises(UsageError, match=r"messages\[1\]"):
        render(chat.BITNET_B158, [TURNS[0], message])


HOSTILE = {
    "syntax": ("x\n{% if %}", "line 2"),
    "attribute": ("{{ ''.__class__.__mro__ }}", "fails"),
    "import": ("{% include '/etc/passwd' %}", "fails"),
    "call": ("{{ messages.append(1) }}", "fails"),
    "undefined": ("{{ nothing.at.all }}", "fails"),
    "type": ("{{ 1 + 'a' }}", "fails"),
    "zero": ("{{ 1 / 0 }}", "fails"),
    "size": ("x" * (chat.MAX_TEMPLATE + 1), "characters"),
    "output": ("{% for i in range(9999) %}{{ 'x' * 9999 }}{% endfor %}", "makes more than"),
    "repeat": ("{{ 'x' * 10000000000 }}", "makes more than"),
    "repeat left": ("{{ 10000000000 * [1] }}", "makes more than"),
    "pad": ("{{ 'x' | center(10000000000) }}", "makes more than"),
    "power": ("{{ 9 ** 9 ** 9 }}", "power"),
    "steps": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "steps"),
    "range": ("{% for i in range(10000000000) %}{% endfor %}", "steps"),
    "nesting": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nests"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_template_that_is_wrong_or_hostile_is_refused(case):
    template, message = HOSTILE[case]
    with pytest.raises(TokenizerError) as caught:
        render(template)
    assert message in caught.value.what
    assert caught.value.remedy


def test_steps_are_counted_for_one_rendering_only():
    template = "{% for i in range(90000) %}{% endfor %}x"
    for _ in range(20):
        assert render(template) == "x"


def test_a_files_own_template_is_used():
    found = chat.template_of(file(LLAMA_3))
    assert (found.text, found.source) == (LLAMA_3, "declared")


def test_the_outdated_template_of_the_2b_4t_is_replaced_and_says_so():
    found = chat.template_of(file("{{ 'Human: ' + messages[0]['content'] + '\n\nBITNETAssistant: ' + eos_token }}"))
    assert found.text == chat.BITNET_B158
    assert found.source.startswith("corrected: ")


@pytest.mark.parametrize("template", [None, "", 3])
def test_a_missing_template_is_named(template):
    with pytest.raises(TokenizerError, match=r"tokenizer\.chat_template is missing"):
        chat.template_of(file(template))
