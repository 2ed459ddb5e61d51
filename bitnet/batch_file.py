"""Files of prompts and files of answers, JSON Lines both; a run that was killed goes on where it was.

The file of answers is its own journal. Its records are in the order of the prompts and each is one whole line, synced
to the disk before the next is begun; so after a kill at any moment it holds the first n answers, and at most a piece of
one more, which is cut off once all before it are known to be this run's. Every record has digests of its prompt, of the
model and of the settings: a run with others is refused rather than mixed in. Nothing in a record depends on time,
memory or chance, so a file that was made in several runs has the same bytes as one made in a single run.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NoReturn

from bitnet.errors import UsageError
from bitnet.generation_config import GenerationConfig

SCHEMA = "urn:bitnet-crossval:infer-batch-1"
MAX_LINE = 16 << 20  # bytes of a prompt with all about it

_ASKED = ("prompt", "messages", "ids")
_SETTINGS = tuple(f.name for f in fields(GenerationConfig))


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line of the file of prompts.

    Attributes:
        number: In the file, from 1.
        raw: Its bytes, without the end of the line.
    """

    number: int
    raw: bytes

    @property
    def digest(self) -> str:
        """Of its bytes."""
        return digest_of(self.raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a line asks.

    Attributes:
        id: The caller's name for it, or None.
        prompt: Text, chat messages, or ids.
        settings: Fields of `GenerationConfig` that take the place of the run's.
    """

    id: str | int | None
    prompt: Any
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Of a run: answers of two runs may stand in one file only if these are the same.

    Attributes:
        model: Digest of the model, its tokenizer and its numerics.
        settings: Digest of the settings of the run.
    """

    model: str
    settings: str


def digest_of(value: bytes | str | Mapping[str, Any]) -> str:
    """The first 16 hexadecimal digits of a sha256; of a mapping, that of its canonical JSON."""
    if isinstance(value, Mapping):
        value = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(value.encode() if isinstance(value, str) else value).hexdigest()[:16]


def read_lines(file: BinaryIO) -> Iterator[Line]:
    """The lines that are not blank. One that is too long is cut, and refused when it is parsed."""
    number = 0
    while raw := file.readline(MAX_LINE + 1):
        number += 1
        rest = raw
        while not rest.endswith(b"\n") and (rest := file.readline(MAX_LINE)):
            continue
        if raw.strip():
            yield Line(number=number, raw=raw.rstrip(b"\r\n"))


def parse(line: Line) -> Request:
    """What a line asks.

    Raises:
        UsageError: It is not JSON, asks nothing, or has a field that is not known.
    """
    if len(line.raw) > MAX_LINE:
        raise UsageError(f"is longer than {MAX_LINE} bytes", remedy="ask for less at once")
    try:
        values = json.loads(line.raw)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"is not JSON: {error}", remedy='write {"prompt": "…"}') from None
    if not isinstance(values, dict):
        raise UsageError("is not an object", remedy='write {"prompt": "…"}')
    asked = [name for name in _ASKED if name in values]
    if len(asked) != 1:
        what = f"has {' and '.join(asked)}" if asked else "has no prompt"
        raise UsageError(what, remedy=f"give one of {', '.join(_ASKED)}")
    for name in values:
        if name not in ("id", *_ASKED, *_SETTINGS):
            remedy = f"known are id, {', '.join((*_ASKED, *_SETTINGS))}"
            raise UsageError(f"has a field {name!r} that is not known", remedy=remedy)
    name = values.get("id")
    if name is not None and (isinstance(name, bool) or not isinstance(name, (str, int))):
        raise UsageError(f"has an id that is {name!r}", remedy="a string or a whole number")
    settings = {k: v for k, v in values.items() if k in _SETTINGS}
    return Request(id=name, prompt=_prompt(asked[0], values[asked[0]]), settings=settings)


def _prompt(kind: str, value: object) -> object:
    ok = {
        "prompt": lambda: isinstance(value, str),
        "messages": lambda: isinstance(value, list) and bool(value) and all(isinstance(m, dict) for m in value),
        "ids": lambda: (
            isinstance(value, list)
            and bool(value)
            and all(isinstance(i, int) and not isinstance(i, bool) for i in value)
        ),
    }[kind]()
    if not ok:
        due = {
            "prompt": "a string",
            "messages": 'a list of {"role": …, "content": …}',
            "ids": "a list of whole numbers",
        }
        raise UsageError(f"has a field {kind!r} that is not {due[kind]}", remedy="change it")
    return value


class Journal:
    """The file of answers.

    Attributes:
        done: Answers that were in it when it was resumed.
        failed: Those of them that are errors.
        cut: Bytes of a half-written answer that were cut off when it was resumed.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        """Open it for this process alone; only `overwrite` changes what it holds.

        Raises:
            UsageError: It is a device, a pipe or a folder, or another run writes to it.
        """
        if path.exists() and not path.is_file() and not path.samefile(os.devnull):
            raise UsageError("is not a file", where=path, remedy="name a file, or `-` for standard output")
        self._path = path
        self._file: io.FileIO = io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise UsageError(
                "another run is writing to it", where=path, remedy="wait for it, or name another"
            ) from None
        if overwrite:
            self._file.truncate(0)
        self.done = self.failed = self.cut = 0

    def resume(self, lines: Iterator[Line], identity: Identity) -> None:
        """Take the lines that are answered off an iterator; the next is the first to be answered.

        A piece of an answer at the end is cut off, after all before it are found to be answers of this run.

        Raises:
            UsageError: An answer belongs to another prompt, model or settings, or is none; nothing is changed.
        """
        self._file.seek(0)
        end = 0
        for raw in io.BufferedReader(_Borrowed(self._file)):
            if not raw.endswith(b"\n"):
                if not (raw.startswith(_HEAD) or _HEAD.startswith(raw)):
                    self._refuse(f"its line {self.done + 1} has no end and is not the beginning of an answer")
                self.cut = len(raw)
                break
            try:
                record = json.loads(raw)
                found = Identity(model=record["model"], settings=record["settings"])
                number, digest, failed = record["line"], record["input"], record["error"] is not None
            except (ValueError, TypeError, KeyError, RecursionError):
                self._refuse(f"its line {self.done + 1} is not an answer of this command")
            line = next(lines, None)
            if line is None:
                self._refuse("it has more answers than there are prompts")
            if (number, digest) != (line.number, line.digest):
                self._refuse(f"its answer {self.done + 1} belongs to another prompt than that of line {line.number}")
            for what in ("model", "settings"):
                if getattr(found, what) != getattr(identity, what):
                    other = "another model or tokenizer" if what == "model" else "other settings"
                    self._refuse(f"its answer {self.done + 1} was made with {other}")
            self.done += 1
            self.failed += failed
            end += len(raw)
        if self.cut:
            self._file.truncate(end)
        self._file.seek(0, os.SEEK_END)

    def _refuse(self, what: str) -> NoReturn:
        raise UsageError(what, where=self._path, remedy="name another file, or begin anew with --overwrite")

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one answer; it is on the disk when this returns."""
        data = encode(record)
        while data:
            data = data[self._file.write(data) :]
        if self._path.is_file():  # the null device has nothing to sync
            os.fsync(self._file.fileno())

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._file.close()


class _Borrowed(io.RawIOBase):
    """A file whose reader may be thrown away without closing it."""

    def __init__(self, file: io.FileIO) -> None:
        self._borrowed = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401  # a buffer of any kind
        return self._borrowed.readinto(buffer)


def encode(record: Mapping[str, Any]) -> bytes:
    """One answer as one line."""
    text = json.dumps({"schema": SCHEMA, **record}, ensure_ascii=False, allow_nan=False)
    return text.encode(errors="backslashreplace") + b"\n"  # a lone surrogate becomes its escape in JSON


#: How every line begins.
_HEAD = encode({}).rstrip(b"}\n")
