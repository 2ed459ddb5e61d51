"""Runs any runner in a child process, so that its crash, abort, hang or hunger is a result and never ours.

    runner = ProcessRunner(factory="reference.llama_cpp:LlamaCpp", kwargs={"model": "tiny.gguf"}, timeout=60)
    with runner:
        runner.run(Request(ids=(1, 2, 3), taps=True))

The child starts with the first request, and again with the next request after a death. What goes wrong comes
out as one of two errors: `ReferenceUnavailableError` (it cannot start: missing package or library, refuses the
model) or `ReferenceFailedError` (it died, hung or answered nonsense), which tells how it ended and its last words.
Errors that the runner itself raises travel back as themselves. `wire.py` is the pipe, `child.py` the other side.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, TypeVar

import numpy as np

from reference.runner import (
    Float32,
    Observation,
    ReferenceFailedError,
    ReferenceUnavailableError,
    Request,
    Rows,
    RunnerInfo,
)
from reference.wire import Arrays, Header, Wire, WireClosedError, WireError

#: Of what the child's native code prints, this much is kept on disk; of it, the tail becomes the last words.
MAX_LOG_BYTES = 1 << 20
LAST_WORDS_BYTES = 4000

#: How native code reports that it could not get memory.
_HUNGRY = ("bad_alloc", "MemoryError", "failed to allocate", "out of memory", "Cannot allocate memory")


T = TypeVar("T")


class _Overdue(Exception):  # noqa: N818  # a signal between two functions of this file, never seen outside
    """The deadline of a request has passed."""


class _Child:
    """One process, its pipe and what it printed."""

    def __init__(self) -> None:
        self.printed = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the child
        self._kept = b""
        log = self.printed.fileno()
        fcntl.fcntl(log, fcntl.F_SETFL, fcntl.fcntl(log, fcntl.F_GETFL) | os.O_APPEND)  # see trim()
        child_reads, we_write = os.pipe()
        we_read, child_writes = os.pipe()
        try:
            self.process = subprocess.Popen(  # noqa: S603  # our own interpreter and arguments
                [sys.executable, "-m", "reference.child", str(child_reads), str(child_writes), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(child_reads, child_writes),
                start_new_session=True,  # Ctrl-C is for us; we end the child ourselves
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                    "PYTHONUNBUFFERED": "1",
                },
            )
        finally:
            os.close(child_reads)
            os.close(child_writes)
        self.wire = Wire(we_read, we_write)
        self.killed = False
        self.deadline = float("inf")
        self.wire.tick = self._tick

    def _tick(self) -> None:
        if time.monotonic() > self.deadline:
            raise _Overdue
        self.trim()
        if self.process.poll() is not None:
            self.wire.tick = _closed  # one more round: an answer written just before the end is still read

    def trim(self) -> None:
        """Keep the file bounded: the child appends, so cutting it to nothing is safe."""
        fd = self.printed.fileno()
        if os.fstat(fd).st_size > MAX_LOG_BYTES:
            self._kept = self.last_bytes()
            os.ftruncate(fd, 0)

    def last_bytes(self) -> bytes:
        """The tail of what was printed."""
        fd = self.printed.fileno()
        size = os.fstat(fd).st_size
        tail = os.pread(fd, LAST_WORDS_BYTES, max(0, size - LAST_WORDS_BYTES))
        return (self._kept + tail)[-LAST_WORDS_BYTES:]

    def end(self, *, grace: float = 0.0) -> int:
        """Make sure the process is gone and the descriptors closed; returns its exit status."""
        try:
            code = self.process.wait(grace) if grace else self.process.poll()
        except subprocess.TimeoutExpired:
            code = None
        if code is None:
            self.killed = True
            self.process.kill()
            code = self.process.wait()
        if not self.printed.closed:
            os.close(self.wire.read_fd)
            os.close(self.wire.write_fd)
            self.trim()
            self._kept = self.last_bytes()
            self.printed.close()
        return code

    def last_words(self) -> str:
        """What it said last, as text."""
        data = self._kept if self.printed.closed else self.last_bytes()
        return data.decode("utf-8", "replace").replace("\r", "\n").strip()


def _closed() -> None:
    raise WireClosedError("the process is gone")


class ProcessRunner:
    """A runner in a child process.

    Args:
        factory: ``module:callable`` that returns a `Runner`; it is imported in the child.
        kwargs: Its arguments, plain JSON types.
        timeout: Seconds that one request (or the start) may take before the child is killed.
        memory_limit: Bytes of address space for the child; None: no limit.
    """

    def __init__(
        self,
        factory: str,
        kwargs: Mapping[str, Any] | None = None,
        *,
        timeout: float = 600.0,
        memory_limit: int | None = None,
    ) -> None:
        self.factory = factory
        self.kwargs = dict(kwargs or {})
        self.timeout = timeout
        self.memory_limit = memory_limit
        self._child: _Child | None = None
        self._finalizer: weakref.finalize[..., ProcessRunner] | None = None
        self._info: RunnerInfo | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> ProcessRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def info(self) -> RunnerInfo:
        """Who this is; starts the child if it has not been asked before."""
        if self._info is None:
            with self._lock:
                self._ensure_started()
        assert self._info is not None
        return self._info

    @property
    def pid(self) -> int | None:
        """The child's process id, None when there is none."""
        return None if self._child is None else self._child.process.pid

    def run(self, request: Request) -> Observation:
        """Compute in the child.

        Raises:
            ReferenceUnavailableError: If the runner cannot start or cannot do this.
            ReferenceFailedError: If it dies, hangs or answers nonsense.
        """
        locks = list((request.lock or {}).items())
        header = {
            "op": "run",
            "ids": [int(i) for i in request.ids],
            "n_batch": request.n_batch,
            "n_greedy": request.n_greedy,
            "last_only": request.last_only,
            "taps": request.taps,
            "lock": None if request.lock is None else [[f"lock {i}", *key] for i, (key, _) in enumerate(locks)],
        }
        sent = {f"lock {i}": value for i, (_, value) in enumerate(locks)}
        return self._ask(header, lambda answer, arrays: _observation(request, answer, arrays), sent)

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> tuple[int, ...]:
        """Ids of a text as the engine in the child sees it."""
        return self.tokenize_many([text], add_special=add_special, parse_special=parse_special)[0]

    def tokenize_many(
        self, texts: Iterable[str], *, add_special: bool = True, parse_special: bool = True
    ) -> list[tuple[int, ...]]:
        """Ids of many texts in one round trip."""
        asked = list(texts)
        header = {"op": "tokenize", "texts": asked, "add_special": add_special, "parse_special": parse_special}
        return self._ask(header, lambda answer, _: _id_lists(answer["ids"], len(asked)))

    def weights(self, name: str, rows: Rows = None) -> Float32:
        """A tensor, or some of its rows, as the engine in the child decodes it, [rows, columns]."""
        header = {"op": "weights", "name": name, "rows": None if rows is None else list(rows)}
        return self._ask(header, lambda _, arrays: _matrix(arrays["weights"]))

    def close(self) -> None:
        """End the child. Closing twice is allowed, and a later request starts a new one."""
        with self._lock:
            child = self._child
            if child is None:
                return
            child.deadline = time.monotonic() + 5.0  # for an orderly end; a native destructor may hang
            try:
                child.wire.send({"op": "close"})
                child.wire.receive()
                self._drop(grace=1.0)
            except (WireError, _Overdue):
                self._drop()
            except BaseException:
                self._drop()
                raise

    def _ensure_started(self) -> _Child:
        if self._child is not None:
            return self._child
        self._child = child = _Child()
        self._finalizer = weakref.finalize(self, child.end)
        header = {"op": "start", "factory": self.factory, "kwargs": self.kwargs, "memory_limit": self.memory_limit}
        try:
            answer, _ = self._exchange(child, header, {})
            info = RunnerInfo(**answer["info"])
        except (KeyError, TypeError) as error:
            self._nonsense(f"no identity: {error}")
        except Exception:
            self._drop()
            raise
        before = self._info
        if before is not None and (before.library_sha256, before.model_sha256) != (
            info.library_sha256,
            info.model_sha256,
        ):
            self._nonsense("after its restart it is another library or another model")
        self._info = info
        return child

    def _ask(self, header: Header, parse: Callable[[Header, Arrays], T], arrays: Arrays | None = None) -> T:
        with self._lock:
            child = self._ensure_started()
            answer = self._exchange(child, header, arrays or {})
            try:
                return parse(*answer)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                self._nonsense(f"{type(error).__name__}: {error}")

    def _exchange(self, child: _Child, header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
        """One request and its answer. Whatever goes wrong with the process ends it and is told in words."""
        child.deadline = time.monotonic() + self.timeout
        try:
            child.wire.send(header, arrays)
            answer, received = child.wire.receive()
        except _Overdue:
            words = self._drop()[1]
            raise ReferenceFailedError(
                self._say(f"no answer within {self.timeout:g} s, killed"), last_words=words
            ) from None
        except WireClosedError:
            code, words = self._drop(grace=2.0)
            ended = "closed its pipe, killed" if child.killed else how_it_ended(code, words, self.memory_limit)
            raise ReferenceFailedError(self._say(ended), last_words=words) from None
        except WireError as error:
            self._nonsense(str(error))
        except BaseException:  # Ctrl-C among them: the conversation is broken off in the middle
            self._drop()
            raise
        if "error" in answer:
            self._raise(answer["error"])
        return answer, received

    def _raise(self, error: Mapping[str, Any]) -> NoReturn:
        """Raise what the child reported."""
        try:
            kind, what = error["kind"], error.get("what", "")
            if kind == "unavailable":
                raise ReferenceUnavailableError(what, remedy=error["remedy"])
            if kind == "memory":
                words = self._drop()[1]
                raise ReferenceFailedError(self._say(f"ran out of memory{_limit(self.memory_limit)}"), last_words=words)
            if kind == "typed":
                raise rebuild(error)
            if kind == "failed":
                raise ReferenceFailedError(self._say(what), last_words=error["last_words"])
        except (KeyError, TypeError, AttributeError) as broken:
            self._nonsense(f"an error report without {broken}")
        self._nonsense(f"an error report of kind {kind!r}")

    def _nonsense(self, what: str) -> NoReturn:
        words = self._drop()[1]
        raise ReferenceFailedError(self._say(f"answered nonsense ({what}), killed"), last_words=words)

    def _say(self, what: str) -> str:
        name = self._info.name if self._info is not None else self.factory.rpartition(":")[2]
        return f"{name}: {what}"

    def _drop(self, *, grace: float = 0.0) -> tuple[int, str]:
        """Forget the child: its exit status and last words. The next request starts another."""
        child, self._child = self._child, None
        if child is None:
            return 0, ""
        code = child.end(grace=grace)
        if self._finalizer is not None:
            self._finalizer.detach()
        return code, child.last_words()


def how_it_ended(code: int, last_words: str, memory_limit: int | None) -> str:
    """An exit status in words: a signal by name, and hunger where it shows."""
    hungry = any(sign in last_words for sign in _HUNGRY)
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = "unknown"
        ended = f"killed by signal {-code} ({name})"
        if -code == signal.SIGKILL and not hungry:
            ended += ", perhaps by the system for want of memory"
    else:
        ended = f"ended with exit code {code} instead of answering"
    return f"{ended}: it ran out of memory{_limit(memory_limit)}" if hungry else ended


def _limit(memory_limit: int | None) -> str:
    return "" if memory_limit is None else f" (its limit is {memory_limit / (1 << 20):.0f} MiB)"


def rebuild(error: Mapping[str, Any]) -> Exception:
    """A typed error from its class, arguments and fields. Only classes of ours that are already loaded here."""
    module, name = error["class"]
    known = getattr(sys.modules.get(module), name, None)
    ours = isinstance(known, type) and issubclass(known, Exception) and hasattr(known, "exit_code")
    if not ours:
        return ReferenceFailedError(f"{name}: {error['args'][0]}")
    assert isinstance(known, type)
    made: Exception = known.__new__(known, *error["args"])
    made.args = tuple(error["args"])
    vars(made).update(error["state"])
    return made


def _observation(request: Request, answer: Header, arrays: Arrays) -> Observation:
    """The answer, checked against what was asked. Raises ValueError, KeyError or TypeError on nonsense."""
    n = len(request.ids)
    ids, generated = answer["ids"], answer["generated"]
    if not _are_ids(ids) or not _are_ids(generated):
        raise ValueError("ids are no list of whole numbers")
    if tuple(ids) != (*(int(i) for i in request.ids), *generated) or len(generated) != request.n_greedy:
        raise ValueError("ids are not those asked for followed by those generated")
    rows = (1 if request.last_only else n) + max(len(generated) - 1, 0)
    logits = arrays["logits"]
    if _matrix(logits, "logits").shape[0] != rows:
        raise ValueError(f"logits of shape {logits.shape} for {rows} positions")
    taps = {(str(name), int(layer)): arrays[f"tap {i}"] for i, (name, layer) in enumerate(answer["taps"])}
    for key, value in taps.items():
        if _matrix(value, f"tap {key}").shape[0] != n:
            raise ValueError(f"tap {key} of shape {value.shape} for {n} tokens")
    seconds = {str(phase): float(spent) for phase, spent in answer["seconds"].items()}
    return Observation(ids=tuple(ids), logits=logits, generated=tuple(generated), taps=taps, seconds=seconds)


def _id_lists(values: object, n: int) -> list[tuple[int, ...]]:
    if not isinstance(values, list) or len(values) != n or not all(_are_ids(row) for row in values):
        raise ValueError(f"not {n} lists of whole numbers")
    return [tuple(row) for row in values]


def _matrix(array: Float32, what: str = "an array") -> Float32:
    if array.ndim != 2 or array.dtype != np.float32:
        raise ValueError(f"{what} of shape {array.shape} and type {array.dtype}, not a float32 matrix")
    return array


def _are_ids(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int for value in values)
