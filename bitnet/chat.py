"""Chat templates: messages to the prompt a model was trained on, with Jinja as Hugging Face renders it.

A template comes from a model file, so it is somebody else's program. It runs in Jinja's immutable sandbox, its size
and its output are bounded, and so is the work of its loops over `range` and the length of what it repeats or pads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from os import fspath
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from bitnet.errors import TokenizerError, UsageError
from bitnet.gguf import GGUF

MAX_TEMPLATE = 1 << 18  # characters; the longest published ones, with tools, stay below a tenth of it
MAX_OUTPUT = 1 << 24  # characters; more than any context holds
MAX_STEPS = 1_000_000  # elements of all ranges of one rendering

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
        source: "declared", or "corrected: …" with the reason.
    """

    text: str
    source: str


def template_of(gguf: GGUF) -> ChatTemplate:
    """The template to use for a model file: its own, unless that is the one known to be wrong.

    Raises:
        TokenizerError: The file has no template.
    """
    declared = gguf.metadata.get("tokenizer.chat_template")
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
    return ChatTemplate(text=declared, source="declared")


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
        TokenizerError: The template is too large, is not valid, does what the sandbox forbids, or makes too much.
        UsageError: A message lacks role or content, or the template refuses the messages.
    """
    _check_messages(messages)
    compiled = _compiled(template)
    moment = now or datetime.now().astimezone()
    try:
        pieces: list[str] = []
        size = 0
        for piece in compiled.generate(
            messages=[dict(message) for message in messages],
            bos_token=bos_token,
            eos_token=eos_token,
            add_generation_prompt=add_generation_prompt,
            raise_exception=_refuse,
            strftime_now=moment.strftime,
        ):
            size += len(piece)
            _check_size(size)
            pieces.append(piece)
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise _fault(f"fails: {error}") from None
    except (MemoryError, RecursionError):
        raise _fault("needs too much memory or nests too deeply") from None
    return "".join(pieces)


def check_template(template: str) -> None:
    """Refuse a template that `render` would refuse whatever the messages: too large, or not Jinja.

    Raises:
        TokenizerError: It is.
    """
    _compiled(template)


def _compiled(template: str) -> Template:
    if len(template) > MAX_TEMPLATE:
        raise _fault(f"has {len(template)} characters; at most {MAX_TEMPLATE} are accepted")
    try:
        return _Sandbox().from_string(template)
    except TemplateSyntaxError as error:
        raise _fault(f"is not valid Jinja in line {error.lineno}: {error.message}") from None
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise _fault(f"fails: {error}") from None
    except (MemoryError, RecursionError):
        raise _fault("needs too much memory or nests too deeply") from None


def _check_messages(messages: Sequence[Mapping[str, str]]) -> None:
    for i, message in enumerate(messages):
        for field in ("role", "content"):
            if not isinstance(message, Mapping) or not isinstance(message.get(field), str):
                raise UsageError(
                    f"messages[{i}] has no {field} that is a string",
                    where="messages",
                    remedy='give each message as {"role": …, "content": …}',
                )


def _check_size(size: int) -> None:
    if size > MAX_OUTPUT:
        raise _fault(f"makes more than {MAX_OUTPUT} characters")


def _refuse(message: str) -> None:
    raise UsageError(
        f"the chat template refuses these messages: {message}",
        where="messages",
        remedy="change the order or the roles of the messages as it asks",
    )


def _fault(what: str) -> TokenizerError:
    return TokenizerError(
        f"the chat template {what}",
        where="tokenizer.chat_template",
        remedy="give the prompt as plain text, or use a file with a sound template",
    )


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's words for training; here it shows its body."""

    tags = {"generation"}  # noqa: RUF012  # declared without ClassVar by the base class

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox with Hugging Face's settings, a budget for `range`, and bounds on repetition."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self._steps = 0
        self.globals["range"] = self._range
        self.filters["tojson"] = _to_json
        for name in ("center", "indent"):
            self.filters[name] = _bounded(self.filters[name])

    def _range(self, *bounds: int) -> range:
        steps = range(*bounds)
        self._steps += len(steps)
        if self._steps > MAX_STEPS:
            raise _fault(f"counts through more than {MAX_STEPS} steps")
        return steps

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401  # Jinja's values
        if operator == "**":
            raise _fault("raises to a power, which no prompt needs")
        if operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, str | list | tuple) and isinstance(times, int):
                    _check_size(len(many) * times)
        return super().call_binop(context, operator, left, right)


def _bounded(filter_: Any) -> Any:  # noqa: ANN401  # Jinja's filters have no common type
    """A filter whose integer arguments may not ask for more than the output may hold."""

    def bounded(value: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  # as above
        for argument in (*args, *kwargs.values()):
            if isinstance(argument, int):
                _check_size(argument)
        return filter_(value, *args, **kwargs)

    return bounded


def _to_json(
    value: Any,  # noqa: ANN401  # whatever the template holds
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the HTML escapes of Jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
