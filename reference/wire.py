"""How two processes talk: one line of JSON, then raw arrays, each behind its length. Nothing is pickled.

    {"op": "run", …, "arrays": [["logits", "<f4", [5, 512]], …]} <newline>
    <8 bytes, little-endian: 10240> <10240 bytes> …

The reader trusts nothing: the line has a limit, every length must be what its shape says, and memory grows
with the bytes that have really arrived, so a lie about a length costs nothing. Both ends are non-blocking and
call `tick` while they wait; a tick that raises (a deadline, a death) ends the wait.
"""

from __future__ import annotations

import json
import math
import os
import select
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Header = dict[str, Any]
Arrays = dict[str, NDArray[Any]]

MAX_LINE = 64 << 20
MAX_ARRAYS = 1 << 16
MAX_ARRAY_BYTES = 1 << 36
DTYPES = frozenset({"<f4", "<f8", "<i4", "<i8", "|u1"})

_CHUNK = 1 << 20
_TICK_MS = 50


class WireError(Exception):
    """What arrived is not a message."""


class WireClosedError(WireError):
    """The other end is gone."""


def _no_tick() -> None:
    """Wait for ever."""


class Wire:
    """Both directions of one conversation.

    Args:
        read_fd: Where messages come from.
        write_fd: Where messages go.
        tick: Called every 50 ms while waiting; may raise.
    """

    def __init__(self, read_fd: int, write_fd: int, tick: Callable[[], None] = _no_tick) -> None:
        self.read_fd = read_fd
        self.write_fd = write_fd
        self.tick = tick
        self._pending = bytearray()
        for fd in (read_fd, write_fd):
            os.set_blocking(fd, False)

    def send(self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None) -> None:
        """Write one message.

        Raises:
            WireClosedError: If nobody reads any more.
        """
        packed = {name: _plain(array) for name, array in (arrays or {}).items()}
        index = [[name, array.dtype.str, list(array.shape)] for name, array in packed.items()]
        self._write(json.dumps({**header, "arrays": index}).encode() + b"\n")
        for array in packed.values():
            self._write(struct.pack("<Q", array.nbytes))
            self._write(array.reshape(-1).view(np.uint8).data)

    def receive(self) -> tuple[Header, Arrays]:
        """Read one message.

        Raises:
            WireClosedError: If the other end closes before the message is whole.
            WireError: If the bytes are not a message.
        """
        line = self._read_line()
        try:
            header = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise WireError(f"a header that is not JSON: {line[:60]!r}") from error
        if not isinstance(header, dict):
            raise WireError(f"a header that is not an object: {line[:60]!r}")
        index = header.pop("arrays", None)
        if not isinstance(index, list) or len(index) > MAX_ARRAYS:
            raise WireError("a header without a sound list of arrays")
        arrays: Arrays = {}
        for entry in index:
            name, dtype, shape = _checked(entry)
            arrays[name] = self._read_array(name, dtype, shape)
        return header, arrays

    def _read_array(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        due = math.prod(shape) * dtype.itemsize
        (length,) = struct.unpack("<Q", self._read(8))
        if length != due:
            raise WireError(f"array {name!r} of shape {list(shape)} comes with {length} bytes, not {due}")
        return np.frombuffer(self._read(length), dtype=dtype).reshape(shape)

    def _read_line(self) -> bytes:
        searched = 0
        while (end := self._pending.find(b"\n", searched)) < 0:
            searched = len(self._pending)
            if searched > MAX_LINE:
                raise WireError(f"a header longer than {MAX_LINE} bytes")
            self._pending += self._some(_CHUNK)
        line = bytes(self._pending[:end])
        del self._pending[: end + 1]
        return line

    def _read(self, n: int) -> bytearray:
        data = self._pending[:n]
        del self._pending[:n]
        while len(data) < n:
            data += self._some(min(_CHUNK, n - len(data)))
        return data

    def _some(self, at_most: int) -> bytes:
        """At least one byte, as soon as there is one."""
        while True:
            try:
                data = os.read(self.read_fd, at_most)
            except BlockingIOError:
                self._wait(self.read_fd, select.POLLIN)
                continue
            if not data:
                raise WireClosedError("the pipe was closed")
            return data

    def _write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self.write_fd, view[:_CHUNK]) :]
            except BlockingIOError:
                self._wait(self.write_fd, select.POLLOUT)
            except BrokenPipeError as error:
                raise WireClosedError("the pipe was closed") from error

    def _wait(self, fd: int, event: int) -> None:
        poll = select.poll()
        poll.register(fd, event)
        while not poll.poll(_TICK_MS):
            self.tick()


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    """C order, little-endian, of a type that may travel."""
    plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    if plain.dtype.str not in DTYPES:
        raise WireError(f"an array of type {array.dtype} does not travel")
    return plain.reshape(array.shape)  # ascontiguousarray gives a scalar a dimension


def _checked(entry: object) -> tuple[str, np.dtype[Any], tuple[int, ...]]:
    match entry:
        case [str(name), str(dtype), list(shape)] if (
            dtype in DTYPES and len(shape) <= 4 and all(type(n) is int and 0 <= n <= MAX_ARRAY_BYTES for n in shape)
        ):
            if math.prod(shape) * np.dtype(dtype).itemsize > MAX_ARRAY_BYTES:
                raise WireError(f"array {name!r} claims shape {shape}, more than {MAX_ARRAY_BYTES} bytes")
            return name, np.dtype(dtype), tuple(shape)
    raise WireError(f"an array described as {str(entry)[:80]}")
