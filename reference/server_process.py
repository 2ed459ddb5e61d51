"""A llama-server of our own: on a free port of this machine alone, with a key, and gone when we are.

It answers nobody else (127.0.0.1, and a key that nobody knows), dies with the process that started it (`keeper.py`),
and what it prints is kept, so that its end can be told in its own words. Answers are bounded in size and time, and are
JSON or an error.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from reference.process import LAST_WORDS_BYTES, how_it_ended
from reference.runner import ReferenceFailedError, ReferenceUnavailableError

#: Seconds it may take to read its model, and to answer one request.
START_SECONDS, ANSWER_SECONDS = 180.0, 600.0
#: Ports that are tried: between our look and its own, somebody else may take one.
_PORTS = 3
_LOOK_SECONDS = 0.05
_BUSY = ("address already in use", "couldn't bind", "could not bind")
_MAX_ERROR = 400


class ServerProcess:
    """A running server.

    Args:
        binary: The program.
        arguments: For it, beside where it listens and its key.
        start_seconds: As `START_SECONDS`.
        answer_seconds: As `ANSWER_SECONDS`.

    Raises:
        ReferenceUnavailableError: It refuses to start; its last words say why.
        ReferenceFailedError: It does not answer in time.
    """

    def __init__(
        self,
        binary: Path,
        arguments: Sequence[str],
        *,
        start_seconds: float = START_SECONDS,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        self._binary, self._arguments = binary, tuple(arguments)
        self._start_seconds, self._answer_seconds = start_seconds, answer_seconds
        for attempt in range(_PORTS):
            if self._start(last=attempt == _PORTS - 1):
                return

    def _start(self, *, last: bool) -> bool:
        """Whether it answers; False where its port was taken."""
        self._key, self.port = secrets.token_hex(16), _free_port()
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the server
        theirs, ours = os.pipe()
        command = [
            *(str(self._binary), *self._arguments),
            *("--host", "127.0.0.1", "--port", str(self.port), "--api-key", self._key),
        ]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        try:
            self._keeper = subprocess.Popen(  # noqa: S603  # our own interpreter and arguments
                [sys.executable, "-m", "reference.keeper", str(theirs), *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._printed,
                pass_fds=(theirs,),
                start_new_session=True,
                env=environment,
            )
        finally:
            os.close(theirs)
        self._finalizer = weakref.finalize(self, _end, self._keeper, ours)
        assert self._keeper.stdout is not None
        said = self._keeper.stdout.readline()
        self.pid = int(said) if said.strip().isdigit() else 0
        return self._answers(last=last)

    def _answers(self, *, last: bool) -> bool:
        """Wait until it has read its model."""
        deadline = time.monotonic() + self._start_seconds
        while time.monotonic() < deadline:
            if self._keeper.poll() is not None:
                words, ended = self.last_words(), self._ended()
                self.close()
                if not last and any(sign in words.lower() for sign in _BUSY):
                    return False
                raise ReferenceUnavailableError(
                    f"{self._binary.name} does not start: {ended}; its last words: {words[-_MAX_ERROR:]}",
                    remedy="start it by hand with this model, and see what it lacks",
                )
            with suppress(OSError, http.client.HTTPException):
                if self._exchange("GET", "/health", None, 1 << 16, seconds=1.0)[0] == http.HTTPStatus.OK:
                    return True
            time.sleep(_LOOK_SECONDS)
        words = self.last_words()
        self.close()
        raise ReferenceFailedError(
            f"{self._binary.name} did not answer within {self._start_seconds:g} s of its start, killed",
            last_words=words,
        )

    def ask(self, path: str, content: dict[str, Any] | None = None, *, most: int = 1 << 20) -> Any:  # noqa: ANN401  # JSON
        """One request, and the JSON it is answered with.

        Args:
            path: As `/completion`.
            content: Is posted as JSON; None: nothing is, and it is a question only.
            most: Bytes that the answer may have.

        Raises:
            ReferenceUnavailableError: It refuses this request.
            ReferenceFailedError: It dies, hangs, or answers nonsense; it is ended then.
        """
        body = None if content is None else json.dumps(content).encode()
        try:
            status, data = self._exchange("GET" if body is None else "POST", path, body, most, self._answer_seconds)
        except TimeoutError:
            self._fail(f"no answer within {self._answer_seconds:g} s, killed")
        except (OSError, http.client.HTTPException) as error:
            with suppress(subprocess.TimeoutExpired):
                self._keeper.wait(2.0)
            gone = self._keeper.poll() is not None
            self._fail(self._ended() if gone else f"broke off its answer ({type(error).__name__}: {error}), killed")
        if len(data) > most:
            self._fail(f"answered nonsense (more than {most} bytes), killed")
        try:
            answer = json.loads(data, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            self._fail(f"answered nonsense (no JSON: {error}), killed")
        if status != http.HTTPStatus.OK:
            raise ReferenceUnavailableError(f"{self._binary.name} refuses {path}: {_said(answer) or status}")
        return answer

    def _exchange(self, method: str, path: str, body: bytes | None, most: int, seconds: float) -> tuple[int, bytes]:
        """Status and body. A server that sends a byte now and then is cut off by the size alone, and by our parent."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json", "Connection": "close"}
        try:
            connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            return response.status, response.read(most + 1)
        finally:
            connection.close()

    def nonsense(self, what: str) -> NoReturn:
        """End it, for what it answered means nothing.

        Raises:
            ReferenceFailedError: Always.
        """
        self._fail(f"answered nonsense ({what}), killed")

    def _fail(self, what: str) -> NoReturn:
        words = self.last_words()
        self.close()
        raise ReferenceFailedError(f"{self._binary.name}: {what}", last_words=words)

    def _ended(self) -> str:
        """Its exit status in words, once the keeper is gone."""
        assert self._keeper.stdout is not None
        said = self._keeper.stdout.read().split() if not self._keeper.stdout.closed else []
        code = int(said[-1]) if said and said[-1].lstrip(b"-").isdigit() else self._keeper.returncode
        return how_it_ended(code, self.last_words(), None)

    def last_words(self) -> str:
        """The tail of what it printed."""
        if self._printed.closed:
            return ""
        fd = self._printed.fileno()
        size = os.fstat(fd).st_size
        return os.pread(fd, LAST_WORDS_BYTES, max(0, size - LAST_WORDS_BYTES)).decode("utf-8", "replace").strip()

    def close(self) -> None:
        """End it. Closing twice is allowed."""
        self._finalizer()
        self._printed.close()


def _end(keeper: subprocess.Popen[bytes], fd: int) -> None:
    """Closing the pipe is what ends the server; the keeper sees to it."""
    os.close(fd)
    try:
        keeper.wait(10.0)
    except subprocess.TimeoutExpired:
        keeper.kill()
        keeper.wait()
    if keeper.stdout is not None:
        keeper.stdout.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _said(answer: object) -> str:
    """What an error of the server says."""
    error = answer.get("error") if isinstance(answer, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return str(message)[:_MAX_ERROR] if message else ""
