"""From bytes to metadata and tensor descriptions, trusting none of them.

A count or length is compared with the bytes that are left, and with the limits, before anything of its size is
allocated; time and memory are bounded by the header's size. Tensor data is never touched.
"""

from __future__ import annotations

import math
import mmap
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from bitnet import gguf_types as g
from bitnet.errors import GGUFError, ResourceLimitError
from bitnet.gguf_strings import string_starts
from bitnet.gguf_types import StringArray, TypedArray, ValueType

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_SCALARS = {
    ValueType.UINT8: struct.Struct("<B"),
    ValueType.INT8: struct.Struct("<b"),
    ValueType.UINT16: struct.Struct("<H"),
    ValueType.INT16: struct.Struct("<h"),
    ValueType.UINT32: _U32,
    ValueType.INT32: struct.Struct("<i"),
    ValueType.FLOAT32: struct.Struct("<f"),
    ValueType.BOOL: struct.Struct("<?"),
    ValueType.UINT64: _U64,
    ValueType.INT64: struct.Struct("<q"),
    ValueType.FLOAT64: struct.Struct("<d"),
}
_MIN_KEY_BYTES = 8 + 1 + 4 + 1  # length, one letter, type, the smallest value
_MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8  # length, one letter, one dimension, type, offset
_NESTED_COST = 160  # bytes of memory for a nested array, at most, beside its values
_BASE_MEMORY = 64 << 20  # bytes for the tables of keys and tensors, which their own limits bound
_DAMAGED = "the file is damaged or was not written completely; download or convert it again"

#: First bytes of files that are mistaken for models, and what to say.
_IMPOSTORS = (
    (b"version https://git-lfs", "this is a Git LFS pointer; run `git lfs pull` to get the model itself"),
    (b"PK\x03\x04", "this is a zip or PyTorch archive; convert it to GGUF first"),
    (b"<", "this looks like a web page; the download did not give the model itself"),
    (b"lmgg", "this is a GGML file of before 2023-08; convert it to GGUF first"),
    (b"fmgg", "this is a GGML file of before 2023-08; convert it to GGUF first"),
    (b"tjgg", "this is a GGML file of before 2023-08; convert it to GGUF first"),
    (b"FUGG", "this file is big-endian; convert it on a little-endian machine"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RawTensor:
    """A tensor description before its place in the file is checked.

    Attributes:
        dims: As in the file, fastest first.
        type_number: As in the file.
        offset: From the start of the data section.
        at: Where the description itself begins.
    """

    name: str
    dims: tuple[int, ...]
    type_number: int
    offset: int
    at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """All that comes before the tensor data.

    Attributes:
        end: First byte after the header, before alignment.
    """

    version: int
    alignment: int
    metadata: dict[str, Any]
    types: dict[str, ValueType]
    tensors: tuple[RawTensor, ...]
    end: int


class _Cursor:
    """A position in the file that only moves over bytes that are there."""

    def __init__(self, buffer: mmap.mmap | bytes, path: str) -> None:
        self.buffer = buffer
        self.path = path
        self.size = len(buffer)
        self.limit = min(self.size, g.MAX_HEADER)
        self.position = 0
        self.deadline = time.thread_time() + g.MAX_PARSE_SECONDS
        self.memory = 0  # bytes held by nested arrays

    def fail(self, reason: str, field: str, at: int | None = None, remedy: str = _DAMAGED) -> NoReturn:
        offset = self.position if at is None else at
        raise GGUFError(reason, path=self.path, field=field, offset=offset, remedy=remedy)

    def over(self, what: str, field: str) -> NoReturn:
        raise ResourceLimitError(
            what,
            where=f"{self.path} at byte {self.position} ({field})",
            remedy="no known model comes near this limit; the file is damaged or hostile",
        )

    def need(self, n: int, field: str) -> None:
        """Refuse unless `n` more bytes are there."""
        if n <= self.limit - self.position:
            return
        if n <= self.size - self.position:
            self.over(f"the header is longer than {g.MAX_HEADER >> 20} MiB", field)
        self.fail(f"needs {n} bytes, but the file ends after {self.size - self.position}", field)

    def tick(self, field: str) -> None:
        """Refuse when reading has taken too long, or nested arrays too much memory."""
        if time.thread_time() > self.deadline:
            self.over(f"reading the header takes more than {g.MAX_PARSE_SECONDS:.0f} s", field)
        if self.memory > _BASE_MEMORY + g.MEMORY_FACTOR * self.position:
            self.over(f"the header takes more than {g.MEMORY_FACTOR} times its size in memory", field)

    def u32(self, field: str) -> int:
        self.need(4, field)
        value: int = _U32.unpack_from(self.buffer, self.position)[0]
        self.position += 4
        return value

    def u64(self, field: str) -> int:
        self.need(8, field)
        value: int = _U64.unpack_from(self.buffer, self.position)[0]
        self.position += 8
        return value

    def take(self, n: int, field: str) -> bytes:
        self.need(n, field)
        raw = self.buffer[self.position : self.position + n]
        self.position += n
        return raw

    def string(self, field: str, longest: int, *, hard: bool = False) -> bytes:
        """A length and its bytes. A length over a rule of the format (`hard`) is an error, over ours a limit."""
        at = self.position
        n = self.u64(field)
        if n > self.size - self.position:
            self.fail(f"its length {n} is past the end of the file", field, at)
        if n > longest:
            if hard:
                self.fail(f"its length {n} is over {longest}", field, at)
            self.over(f"its length {n} is over {longest}", field)
        return self.take(n, field)

    def text(self, field: str, longest: int, *, hard: bool = False) -> str:
        at = self.position
        raw = self.string(field, longest, hard=hard)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            self.fail(f"is not valid UTF-8 at its byte {error.start}", field, at)

    def name(self, field: str, longest: int) -> str:
        """A key or a tensor's name: printable, not empty."""
        at = self.position
        name = self.text(field, longest, hard=True)
        if not name:
            self.fail("is empty", field, at)
        if not name.isprintable():
            self.fail(f"holds control characters: {name[:80]!r}", field, at)
        return name


def parse(buffer: mmap.mmap | bytes, path: str) -> Header:
    """Read the header of a file.

    Raises:
        GGUFError: A rule of the format is broken; file, field and offset are named.
        ResourceLimitError: The header is larger than any model's.
    """
    cursor = _Cursor(buffer, path)
    version = _preamble(cursor)
    n_tensors = _count(cursor, "tensor count", _MIN_TENSOR_BYTES, g.MAX_TENSORS)
    n_keys = _count(cursor, "key count", _MIN_KEY_BYTES, g.MAX_KEYS)
    metadata: dict[str, Any] = {}
    types: dict[str, ValueType] = {}
    alignment = g.DEFAULT_ALIGNMENT
    for i in range(n_keys):
        at = cursor.position
        key = cursor.name(f"key {i} of {n_keys}", g.MAX_KEY)
        if key in metadata:
            cursor.fail("the key occurs twice", key, at)
        types[key] = _value_type(cursor, key)
        at = cursor.position
        metadata[key] = _value(cursor, types[key], key, 0)
        if key == "general.alignment":
            alignment = _alignment(cursor, types[key], metadata[key], at)
        cursor.tick(key)
    tensors = []
    names: set[str] = set()
    for i in range(n_tensors):
        tensor = _tensor(cursor, f"tensor {i} of {n_tensors}")
        if tensor.name in names:
            cursor.fail("the name occurs twice", f"tensor {tensor.name}", tensor.at)
        names.add(tensor.name)
        tensors.append(tensor)
        if i % 1024 == 0:
            cursor.tick(tensor.name)
    return Header(
        version=version,
        alignment=alignment,
        metadata=metadata,
        types=types,
        tensors=tuple(tensors),
        end=cursor.position,
    )


def _preamble(cursor: _Cursor) -> int:
    start = bytes(cursor.buffer[:24])
    if not start:
        cursor.fail("the file is empty", "magic", remedy="download or convert it again")
    if start[:4] != g.MAGIC:
        if len(start) < 4 and g.MAGIC.startswith(start):
            cursor.fail(f"the file ends after {len(start)} bytes", "magic")
        remedy = next((say for first, say in _IMPOSTORS if start.startswith(first)), None)
        if remedy is None and start[8:9] == b"{":
            remedy = "this looks like a safetensors file; convert it to GGUF first"
        elif remedy is None and all(32 <= b < 127 or b in b"\t\n\r" for b in start):
            remedy = "this is a text file; give the path of a GGUF model"
        cursor.fail(
            f"begins with {start[:4]!r}, not {g.MAGIC!r}", "magic", 0, remedy or "give the path of a GGUF model"
        )
    cursor.position = 4
    version = cursor.u32("version")
    if version & 0xFFFF == 0 and version:
        cursor.fail("the file is big-endian", "version", 4, "convert it on a little-endian machine")
    if version not in (2, 3):
        cursor.fail(f"version {version} is not supported", "version", 4, "versions 2 and 3 are; convert it again")
    return version


def _count(cursor: _Cursor, field: str, smallest: int, most: int) -> int:
    n = cursor.u64(field)
    if n > (cursor.size - cursor.position) // smallest:
        cursor.fail(f"{n} is more than the rest of the file can hold", field, cursor.position - 8)
    if n > most:
        cursor.over(f"{n} is over the limit of {most}", field)
    return n


def _value_type(cursor: _Cursor, field: str) -> ValueType:
    number = cursor.u32(field)
    try:
        return ValueType(number)
    except ValueError:
        cursor.fail(f"value type {number} is unknown", field, cursor.position - 4)


def _alignment(cursor: _Cursor, type_: ValueType, value: Any, at: int) -> int:  # noqa: ANN401  # any value of a file
    key = "general.alignment"
    if type_ is not ValueType.UINT32:
        cursor.fail(f"is of type {type_.name}, not UINT32", key, at)
    if value == 0 or value & (value - 1) or value > g.MAX_ALIGNMENT:
        cursor.fail(f"is {value}, not a power of two up to {g.MAX_ALIGNMENT}", key, at)
    return int(value)


def _value(cursor: _Cursor, type_: ValueType, field: str, depth: int) -> Any:  # noqa: ANN401  # any value of a file
    if type_ is ValueType.STRING:
        return cursor.text(field, g.MAX_STRING)
    if type_ is ValueType.ARRAY:
        return _array(cursor, field, depth + 1)
    scalar = _SCALARS[type_]
    at = cursor.position
    raw = cursor.take(scalar.size, field)
    if type_ is ValueType.BOOL and raw[0] > 1:
        cursor.fail(f"a bool is {raw[0]}, not 0 or 1", field, at)
    return scalar.unpack(raw)[0]


def _array(cursor: _Cursor, field: str, depth: int) -> Any:  # noqa: ANN401  # any value of a file
    at = cursor.position
    if depth > g.MAX_DEPTH:
        cursor.fail(f"arrays are nested deeper than {g.MAX_DEPTH}", field)
    element = _value_type(cursor, field)
    n = cursor.u64(field)
    smallest = {ValueType.STRING: 8, ValueType.ARRAY: 12}.get(element) or g.NUMBERS[element].itemsize
    if n > (cursor.size - cursor.position) // smallest:
        cursor.fail(f"its {n} elements are past the end of the file", field, at)
    if n > g.MAX_ARRAY:
        cursor.over(f"an array of {n} elements is over the limit of {g.MAX_ARRAY}", field)
    if element is ValueType.STRING:
        return _strings(cursor, n, field)
    if element is ValueType.ARRAY:
        return TypedArray(element, tuple(_nested(cursor, n, field, depth)))
    raw = cursor.take(n * smallest, field)
    if element is ValueType.BOOL and raw.translate(None, b"\0\1"):
        index = next(i for i, b in enumerate(raw) if b > 1)
        cursor.fail(f"a bool is {raw[index]}, not 0 or 1", f"{field}[{index}]", cursor.position - n + index)
    return np.frombuffer(raw, g.NUMBERS[element])


def _nested(cursor: _Cursor, n: int, field: str, depth: int) -> list[Any]:
    values = []
    for i in range(n):
        cursor.memory += _NESTED_COST
        if i % 1024 == 0:
            cursor.tick(field)
        values.append(_array(cursor, field, depth + 1))
    return values


def _strings(cursor: _Cursor, n: int, field: str) -> StringArray:
    begin = cursor.position
    starts, done, position = string_starts(cursor.buffer, begin, n, cursor.limit, lambda: cursor.tick(field))
    if done < n or position > cursor.limit:
        in_text = position > cursor.limit  # else in the length of the next one
        index = done - in_text
        cursor.position = int(starts[index]) if in_text else position
        cursor.need(position - cursor.position if in_text else 8, f"{field}[{index}]")
    starts[n] = position + 8
    longest = int(np.diff(starts).max(initial=8)) - 8
    if longest > g.MAX_STRING:
        cursor.over(f"a string of {longest} bytes is over {g.MAX_STRING}", field)
    cursor.position = position
    starts -= np.uint64(begin)
    return StringArray(cursor.buffer[begin:position], starts)


def _tensor(cursor: _Cursor, field: str) -> RawTensor:
    at = cursor.position
    name = cursor.name(field, g.MAX_NAME)
    field = f"tensor {name}"
    if "/" in name or "\\" in name or name in (".", ".."):
        cursor.fail("the name holds path characters", field, at)
    here = cursor.position
    n_dims = cursor.u32(field)
    if not 1 <= n_dims <= g.MAX_DIMS:
        cursor.fail(f"has {n_dims} dimensions, not 1 to {g.MAX_DIMS}", field, here)
    here = cursor.position
    dims: Sequence[int] = struct.unpack(f"<{n_dims}q", cursor.take(8 * n_dims, field))
    for i, dim in enumerate(dims):
        if dim <= 0:
            cursor.fail(f"dimension {i} is {dim}, which must be positive", field, here + 8 * i)
    if math.prod(dims) > g.MAX_INT64:
        cursor.fail(f"its dimensions {list(dims)} overflow 63 bits", field, here)
    type_number = cursor.u32(field)
    return RawTensor(name=name, dims=tuple(dims), type_number=type_number, offset=cursor.u64(field), at=at)
