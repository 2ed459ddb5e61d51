"""A command line of these packages to its end, which includes the last that its standard output takes."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

from receipts.visible import visible


def run(name: str, command: Callable[[], None]) -> None:
    """Run a command; what the system refuses it is one sentence, with the exit code 6 where a disk is full, else 2.

    A reader of its output who has left, as `| head` does, is no failure.
    """
    try:
        try:
            command()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:
        if sys.stdout is not None:  # what it still holds would fail again at the end of the process
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:
            sys.exit(0)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        said = "the disk is full" if full else error.strerror or str(error)
        where = "" if error.filename is None else f"{error.filename}: "
        sys.stderr.write(f"{name}: {visible(where + said)}\n")
        sys.exit(6 if full else 2)
