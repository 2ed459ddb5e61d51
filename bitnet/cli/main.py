"""Where commands end: an exit code of the design, and for a failure one message, or one document if JSON is wanted."""

from __future__ import annotations

import errno
import gc
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import TextIO

import typer

from bitnet.cli import streams
from bitnet.cli.app import app, plugins
from bitnet.cli.output import error_document
from bitnet.errors import BitNetError, ResourceLimitError, UsageError

INTERRUPTED = 130


class InterruptedByUserError(BitNetError):
    """Ctrl-C, or the signal that it sends."""

    exit_code = INTERRUPTED
    severity = "usage"


#: What the parser raises for an argument that it does not know; its home differs between versions of typer.
_PARSING = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
_NO_COMMAND = "NoArgsIsHelpError"  # a group alone; what it says is its help

#: Objects made between two searches for garbage. Starting makes hundreds of thousands that stay; searching among them
#: as often as usual takes a tenth of the time to the first token.
_YOUNG = 100_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; default those of this process.

    Returns:
        The exit code.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    gc.set_threshold(_YOUNG)
    streams.prepare()
    try:
        code = app(args=given, prog_name="bitnet", standalone_mode=False)
    except Exception as error:
        if type(error).__name__ == _NO_COMMAND:
            print(error, file=sys.stderr)
            return UsageError.exit_code
        if sys.flags.dev_mode and _typed(error) is None:
            raise
        failure = _typed(error) or _unforeseen(error)
        return _fail(failure, failure.exit_code, given)
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        return _fail(InterruptedByUserError("interrupted"), INTERRUPTED, given)
    return code if isinstance(code, int) else 0


def _typed(error: Exception) -> BitNetError | None:
    """What a user can do something about, or None for a fault of this program."""
    if isinstance(error, BitNetError):
        return error
    if isinstance(error, _PARSING):
        return _wrong_usage(error)
    if isinstance(getattr(error, "exit_code", None), int):
        return _of_plugin(error)
    if isinstance(error, MemoryError):
        return ResourceLimitError("there is not enough memory", remedy="close other programs, or use a smaller model")
    if isinstance(error, OSError) and error.strerror:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return ResourceLimitError("the disk is full", where=error.filename, remedy="make room and run it again")
        return UsageError(error.strerror, where=error.filename, remedy="check the path and its permissions")
    return None


def _of_plugin(error: Exception) -> BitNetError:
    """An error of another package's command, which brings its exit code, and may say where and what helps."""
    where = " in ".join(filter(None, (getattr(error, name, "") for name in ("file", "path")))) or None
    made = BitNetError(getattr(error, "reason", str(error)), where=where, remedy=getattr(error, "remedy", None))
    made.exit_code = error.exit_code  # type: ignore[attr-defined,misc]  # asked for before; its own, not its class's
    return made


def _wrong_usage(error: Exception) -> UsageError:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "bitnet"
    what, remedy = (
        getattr(error, "format_message", error.__str__)().rstrip("."),
        f"`{command} --help` shows what there is",
    )
    if command == "bitnet" and what.startswith("No such command") and not plugins():
        remedy += "; benchmark, receipt and validate are there once this package is installed (`pip install .`)"
    return UsageError(what, remedy=remedy)


def _unforeseen(error: Exception) -> BitNetError:
    return BitNetError(
        f"a fault of this program, {type(error).__name__}: {error}",
        remedy="please report it, with what `python -X dev -m bitnet …` prints",
    )


def _fail(error: BitNetError, code: int, given: Sequence[str]) -> int:
    if wants_json(given) and _told(error_document(error, code), sys.stdout):
        return code
    _told("" if code == INTERRUPTED else f"bitnet: {error}", sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # which the end of the process would meet again, and leave with a code of its own
        streams.give_up(sys.stdout)
    return code


def _told(text: str, stream: TextIO) -> bool:
    """Print it, if the stream takes it: one that is full may be what went wrong."""
    try:
        print(text, file=stream, flush=True)
    except OSError:
        streams.give_up(stream)
        return False
    return True


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for JSON; asked of lines, too, that could not be parsed."""
    return "--format=json" in arguments or ("--format", "json") in pairwise(arguments)
