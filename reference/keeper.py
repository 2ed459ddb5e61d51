"""Keeps a server that belongs to somebody: starts it in a process group of its own, and ends it with its owner.

It is started as ``python -m reference.keeper FD COMMAND…``, tells the server's process id in its first line, how it
ended in its second, and kills the whole group when the other end of the pipe FD is closed: by its owner, or because
that is gone, however it died.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress

#: Milliseconds between two looks at the server; the end of the owner is noticed at once.
_LOOK = 100


def keep(fd: int, command: list[str]) -> int:
    """Run a command until it ends or nobody holds the other end of a pipe; returns its exit status."""
    try:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, stdout=sys.stderr)  # noqa: S603  # our own arguments
    except OSError as error:
        sys.stderr.write(f"{command[0]} does not start: {error.strerror}\n")
        return 127
    _say(server.pid)
    poll = select.poll()
    poll.register(fd, 0)  # hang-up is reported without being asked for
    while server.poll() is None:
        if poll.poll(_LOOK):
            break
    with suppress(OSError):
        os.killpg(server.pid, signal.SIGKILL)  # it, and whatever it started
    code = server.wait()
    with suppress(OSError):
        _say(code)
    return 0


def _say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def main(arguments: list[str]) -> int:
    """Keep the command that the command line names."""
    fd = int(arguments[0])
    os.set_inheritable(fd, False)  # noqa: FBT003  # the standard library takes it by position
    return keep(fd, arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
