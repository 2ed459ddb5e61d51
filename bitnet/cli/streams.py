"""The standard streams, such that a command can rely on them."""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from contextlib import suppress
from typing import TextIO

_ESCAPE = "bitnet.escape"


def _escape(error: UnicodeError) -> tuple[str, int]:
    """What an encoding has no bytes for, as JSON escapes it: a document stays one, and people can read it."""
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


codecs.register_error(_ESCAPE, _escape)


def prepare() -> None:
    """Open the streams that are closed, as they may be below a daemon, and let none fail on a character.

    Bytes that are no text become lone surrogates, as they do in arguments.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # in the order of their numbers
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123  # for good
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, _ESCAPE)):
        if isinstance(stream, io.TextIOWrapper):
            with suppress(io.UnsupportedOperation):  # a caller in this process has read from it; it stays as it is
                stream.reconfigure(errors=errors)


def give_up(stream: TextIO) -> None:
    """Write no more to a stream whose reader has left, or whose disk is full: not at the end of the process either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
