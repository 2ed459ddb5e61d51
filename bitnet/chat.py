"""Chat templates: messages to the prompt a model was trained on, with Jinja as Hugging Face renders it.

A template comes from a model file, so it is somebody else's program. Its size is bounded, it runs in Jinja's immutable
sandbox (`chat_sandbox`), and unless it is the one written below, in a process with limits of time and memory
(`chat_process`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from os import fspath
from typing import TYPE_CHECKING

from bitnet.errors import TokenizerError, UsageError

if TYPE_CHECKING:
    from bitnet.gguf import GGUF

MAX_TEMPLATE = 1 << 18  # characters; the longest published ones, with tools, stay below a tenth of it

BITNET_B158 = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""The form BitNet-b1.58-2B-4T was trained on."""

_OUTDATED = "BITNETAssistant"  # what the 2B-4T's published GGUF says; with it the model does not end its answers


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate:
    """A template and where it comes from.

    Attributes:
        text: Jinja source.
        source: "declared", or where else it comes from, or "corrected: …" with the reason.
    """

    text: str
    source: str


def template_of(gguf: GGUF, came_with: str | None = None) -> ChatTemplate:
    """The template to use for a model file: its own, unless that is the one known to be wrong.

    Args:
        gguf: The file.
        came_with: A template that its tokenizer brought, used where the file has none.

    Raises:
        TokenizerError: There is no template.
    """
    declared = gguf.metadata.get("tokenizer.chat_template")
    source = "declared"
    if (not isinstance(declared, str) or not declared) and came_with:
        declared, source = came_with, "from the tokenizer's files; the model file has none"
    if not isinstance(declared, str) or not declared:
        raise TokenizerError(
            "tokenizer.chat_template is missing",
            where=fspath(gguf.path),
            remedy="give the prompt as plain text, or use a model tuned for conversation",
        )
    if _OUTDATED in declared:
        return ChatTemplate(
            text=BITNET_B158,
            source=f"corrected: the file's template writes {_OUTDATED!r}, which the model was not trained on",
        )
    return ChatTemplate(text=declared, source=source)


def render(
    template: str,
    messages: Sequence[Mapping[str, str]],
    *,
    bos_token: str,
    eos_token: str,
    add_generation_prompt: bool = True,
    now: datetime | None = None,
) -> str:
    """The prompt that a template makes of messages.

    The result spells out its special tokens, BOS included: encode it with `add_special=False`.

    Args:
        template: Jinja source.
        messages: `role` and `content` of each turn, oldest first.
        bos_token: Text of BOS.
        eos_token: Text of EOS.
        add_generation_prompt: End with the beginning of the assistant's turn.
        now: What `strftime_now` shows; default the local time.

    Raises:
        TokenizerError: The template is too large, is not valid, does what the sandbox forbids, or takes too
            much time or room.
        UsageError: A message lacks role or content, or the template refuses the messages.
    """
    _check_messages(messages)
    if len(template) > MAX_TEMPLATE:
        raise _fault(f"has {len(template)} characters; at most {MAX_TEMPLATE} are accepted")
    moment = now or datetime.now().astimezone()
    ends = {"bos_token": bos_token, "eos_token": eos_token, "add_generation_prompt": add_generation_prompt}
    from bitnet.chat_sandbox import TemplateFaultError, TemplateRefusalError

    try:
        if template == BITNET_B158:
            from bitnet.chat_sandbox import render as render_here

            return render_here(
                template,
                messages,
                bos_token=bos_token,
                eos_token=eos_token,
                add_generation_prompt=add_generation_prompt,
                now=moment,
            )
        from bitnet.chat_process import render as render_apart

        request = {"template": template, "messages": [dict(message) for message in messages], "now": moment.isoformat()}
        return render_apart(request | ends)
    except TemplateFaultError as error:
        raise _fault(str(error)) from None
    except TemplateRefusalError as error:
        raise UsageError(
            f"the chat template refuses these messages: {error}",
            where="messages",
            remedy="change the order or the roles of the messages as it asks",
        ) from None


def check_template(template: str) -> None:
    """Try a template on one message; that it asks for others is no fault.

    Raises:
        TokenizerError: It is too large, not Jinja, or fails.
    """
    with suppress(UsageError):
        render(template, [{"role": "user", "content": "Hello"}], bos_token="", eos_token="")


def _check_messages(messages: Sequence[Mapping[str, str]]) -> None:
    for i, message in enumerate(messages):
        for field in ("role", "content"):
            if not isinstance(message, Mapping) or not isinstance(message.get(field), str):
                raise UsageError(
                    f"messages[{i}] has no {field} that is a string",
                    where="messages",
                    remedy='give each message as {"role": …, "content": …}',
                )


def _fault(what: str) -> TokenizerError:
    return TokenizerError(
        f"the chat template {what}",
        where="tokenizer.chat_template",
        remedy="give the prompt as plain text, or use a file with a sound template",
    )
