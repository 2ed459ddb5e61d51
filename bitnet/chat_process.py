"""A process of its own for templates from model files, so that none can hang the caller or fill its memory.

It starts with the first template (a quarter of a second), serves one after the other (a millisecond or two each) and
ends with the caller. A clock runs beside each rendering; when it is up the process is killed, whatever it is doing,
which works the same on every system. The next template gets a new one.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from bitnet.chat_sandbox import MAX_OUTPUT, TemplateFaultError, TemplateRefusalError

TIME_LIMIT = 5.0  # seconds for one rendering; the longest published templates need milliseconds
_START_LIMIT = 60.0  # seconds for an interpreter to start on a machine that is busy
_MAX_ANSWER = 12 * MAX_OUTPUT + 1000  # bytes; JSON spells a character with at most twelve

_CODE = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from bitnet.chat_sandbox import serve; serve()"


class _Process:
    """The other side, started."""

    def __init__(self) -> None:
        self.owner = os.getpid()  # a fork shares the pipes and must not use them
        try:
            self._child = subprocess.Popen(  # noqa: S603  # our own interpreter and code
                [sys.executable, "-I", "-c", _CODE, json.dumps([str(Path(path).absolute()) for path in sys.path])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the caller, who ends this process himself
            )
        except OSError as error:
            raise TemplateFaultError(f"cannot run apart from this program: {error}") from None
        self._read(_START_LIMIT, death="cannot run apart from this program: its process ends at once")

    def ask(self, request: Mapping[str, Any], limit: float) -> Mapping[str, Any]:
        """The answer to one request; the process is ended if it takes longer than `limit` seconds or dies."""
        try:
            pipe = _opened(self._child.stdin)
            pipe.write(json.dumps(request).encode() + b"\n")
            pipe.flush()
            return self._read(limit)
        except BrokenPipeError:
            raise TemplateFaultError("ended the process it ran in") from None
        except BaseException:  # half an answer may be left in the pipe
            self.end()
            raise

    def _read(self, limit: float, death: str = "needs too much memory") -> Mapping[str, Any]:
        overdue = threading.Event()

        def stop() -> None:
            overdue.set()
            self._child.kill()

        clock = threading.Timer(limit, stop)
        clock.daemon = True
        clock.start()
        try:
            line = _opened(self._child.stdout).readline(_MAX_ANSWER)
        finally:
            clock.cancel()
        if not line.endswith(b"\n"):
            self.end()
            raise TemplateFaultError(f"takes longer than {limit:g} seconds" if overdue.is_set() else death)
        answer: Mapping[str, Any] = json.loads(line)
        return answer

    @property
    def alive(self) -> bool:
        return self.owner == os.getpid() and self._child.poll() is None

    def end(self) -> None:
        """Kill it and close the pipes; harmless when it is dead."""
        if self.owner == os.getpid():
            self._child.kill()
            self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            try:
                _opened(pipe).close()
            except OSError:
                continue  # what was not sent yet has nowhere to go


def _opened(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


_lock = threading.Lock()
_process: _Process | None = None


def render(request: Mapping[str, Any]) -> str:
    """What the template of a request makes, in the process apart.

    Raises:
        TemplateFaultError: It is wrong, or takes too much time or memory.
        TemplateRefusalError: It refuses the messages.
    """
    global _process  # one process for the program
    with _lock:
        if _process is None or not _process.alive:
            close()
            _process = _Process()
        answer = _process.ask(request, TIME_LIMIT)
    if "fault" in answer:
        raise TemplateFaultError(answer["fault"])
    if "refusal" in answer:
        raise TemplateRefusalError(answer["refusal"])
    text: str = answer["text"]
    return text


@atexit.register
def close() -> None:
    """End the process, if there is one."""
    global _process  # as above
    if _process is not None:
        _process.end()
        _process = None
