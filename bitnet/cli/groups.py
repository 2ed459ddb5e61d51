"""Groups of commands, whose help comes at once and ends with examples."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup


class Group(TyperGroup):
    """A group; `passes_on` while it reads arguments that begin with a command, so that none is its own."""

    passes_on = False

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401  # the parser's, whose home differs
        """Leave our own options alone where none is given: reading them costs half the time that a help text takes."""
        self.passes_on = bool(args) and not args[0].startswith("-")
        try:
            return super().parse_args(ctx, args)
        finally:
            self.passes_on = False

    def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401  # likewise
        """Options of our own."""
        return [] if self.passes_on else super().get_params(ctx)


def examples(*lines: str) -> str:
    """The end of a help text: commands that work, from the root of the repository."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


def group(help_text: str, epilog: str, **settings: Any) -> typer.Typer:
    """A group of commands, with plain help: it comes at once, and reads well in a pipe."""
    quick = {"no_args_is_help": True, "pretty_exceptions_enable": False, "rich_markup_mode": None, "cls": Group}
    return typer.Typer(help=help_text, epilog=epilog, **(quick | {"add_completion": False} | settings))
