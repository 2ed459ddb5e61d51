"""Jinja in its immutable sandbox, with Hugging Face's settings, and the process it runs in.

    {"template": …, "messages": […], …}      one line of JSON to the process
    {"text": …} or {"fault": …}              one line back; {"refusal": …} if the template refuses the messages

Sizes are bounded here: output, ranges, repetition, padding, powers. That catches what goes wrong by accident. Against a
template made to hurt, checks inside the interpreter are never complete (a list that holds itself twice, forty deep,
is printed by one uninterruptible call), so the process has a memory limit and the other side a clock (`chat_process`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_OUTPUT = 1 << 24  # characters; more than any context holds
MAX_STEPS = 1_000_000  # elements of all ranges of one rendering
MAX_MEMORY = 1 << 30  # bytes of address space; the interpreter with Jinja takes a tenth of it


class TemplateFaultError(Exception):
    """What the template does wrong, to be put after "the chat template"."""


class TemplateRefusalError(Exception):
    """What the template says against the messages."""


def render(
    template: str,
    messages: Sequence[Mapping[str, str]],
    *,
    bos_token: str,
    eos_token: str,
    add_generation_prompt: bool,
    now: datetime,
) -> str:
    """The prompt, made in this process.

    Raises:
        TemplateFaultError: The template is not valid, does what the sandbox forbids, or makes too much.
        TemplateRefusalError: The template refuses the messages.
    """
    try:
        compiled = _Sandbox().from_string(template)
        pieces: list[str] = []
        size = 0
        for piece in compiled.generate(
            messages=[dict(message) for message in messages],
            bos_token=bos_token,
            eos_token=eos_token,
            add_generation_prompt=add_generation_prompt,
            raise_exception=_refuse,
            strftime_now=now.strftime,
        ):
            size += len(piece)
            _check_size(size)
            pieces.append(piece)
    except TemplateSyntaxError as error:
        raise TemplateFaultError(f"is not valid Jinja in line {error.lineno}: {error.message}") from None
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise TemplateFaultError(f"fails: {error}") from None
    except (MemoryError, RecursionError):
        raise TemplateFaultError("needs too much memory or nests too deeply") from None
    return "".join(pieces)


def serve() -> None:
    """Answer requests on standard input until it closes."""
    with suppress(ImportError, OSError, ValueError):  # where the system has no such limit, the clock remains
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    _answer({"ready": True})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        try:
            answer = {"text": render(**request | {"now": datetime.fromisoformat(request["now"])})}
        except TemplateFaultError as error:
            answer = {"fault": str(error)}
        except TemplateRefusalError as error:
            answer = {"refusal": str(error)}
        _answer(answer)


def _answer(answer: Mapping[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
    sys.stdout.buffer.flush()


def _check_size(size: int) -> None:
    if size > MAX_OUTPUT:
        raise TemplateFaultError(f"makes more than {MAX_OUTPUT} characters")


def _refuse(message: str) -> None:
    raise TemplateRefusalError(str(message)[:1000])


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
            raise TemplateFaultError(f"counts through more than {MAX_STEPS} steps")
        return steps

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401  # Jinja's values
        if operator == "**":
            raise TemplateFaultError("raises to a power, which no prompt needs")
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
