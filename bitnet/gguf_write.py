"""Writing GGUF: header first, then tensors one at a time, into a file that appears only when it is whole."""

from __future__ import annotations

import mmap
import os
import secrets
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from bitnet import gguf_types as g
from bitnet.errors import BitNetError, UsageError
from bitnet.gguf_header import parse
from bitnet.gguf_layout import place
from bitnet.gguf_types import StringArray, TensorData, TypedArray, ValueType, align_up, shape_fault, tensor_bytes

_INFERRED: tuple[tuple[type | tuple[type, ...], ValueType], ...] = (
    ((bool, np.bool_), ValueType.BOOL),
    (int, ValueType.UINT32),
    (float, ValueType.FLOAT32),
    ((str, bytes), ValueType.STRING),
    ((list, tuple, np.ndarray, StringArray, TypedArray), ValueType.ARRAY),
)
_BY_DTYPE = {dtype.str[1:]: type_ for type_, dtype in g.NUMBERS.items()}


def write(
    path: str | PathLike[str],
    metadata: Mapping[str, Any],
    tensors: Iterable[TensorData],
    *,
    alignment: int = g.DEFAULT_ALIGNMENT,
) -> None:
    """Write a GGUF file, version 3, atomically: it is made beside `path`, synced, checked, and renamed.

    Args:
        path: Where. An existing file is replaced, or left untouched if anything fails.
        metadata: Values by key. A `(ValueType, value)` pair or a `TypedArray` names the type; otherwise bool, int
            (UINT32), float (FLOAT32), str, numpy scalars and arrays by their dtype, lists by their elements.
        tensors: In the order they are to lie in the file. Data given as a function is made when its turn comes.
        alignment: Of tensors, bytes; noted in the file when it is not 32.

    Raises:
        UsageError: What is given cannot be a valid file, or `path` is something else than a file.
    """
    path, tensors = Path(path), list(tensors)
    if path.exists() and not path.is_file():
        raise UsageError("is a folder, a device or a pipe", where=path, remedy="name a file")
    _check_alignment(metadata, alignment)
    header = _header(metadata, tensors, alignment)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")  # the name itself may be as long as names can be
    try:
        with temporary.open("xb") as file:
            file.write(header)
            _pad(file, alignment)
            for tensor in tensors:
                _write_data(file, tensor)
                _pad(file, alignment)
            file.flush()
            os.fsync(file.fileno())
        _verify(temporary)
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UsageError(
            f"cannot be written: {error.strerror or error}",
            where=path,
            remedy="check the folder, its rights and the disk",
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _check_alignment(metadata: Mapping[str, Any], alignment: int) -> None:
    if alignment < 1 or alignment & (alignment - 1) or alignment > g.MAX_ALIGNMENT:
        raise UsageError(f"alignment is {alignment}", where="write", remedy="give a power of two up to 1 MiB")
    declared = metadata.get("general.alignment", alignment)
    if isinstance(declared, tuple):
        declared = declared[1]
    if declared != alignment:
        raise UsageError(
            f"general.alignment is {declared}, but alignment={alignment} is asked for",
            where="write",
            remedy="leave the key to the writer",
        )


def _header(metadata: Mapping[str, Any], tensors: Sequence[TensorData], alignment: int) -> bytes:
    values = dict(metadata)
    if alignment != g.DEFAULT_ALIGNMENT:
        values["general.alignment"] = (ValueType.UINT32, alignment)
    parts = [g.MAGIC, struct.pack("<IQQ", g.VERSION, len(tensors), len(values))]
    for key, value in values.items():
        type_, plain = _typed(value, key)
        parts += (_string(key, key), struct.pack("<I", type_), _value(type_, plain, key))
    offset = 0
    for tensor in tensors:
        dims = tensor.shape[::-1]
        fault = shape_fault(tensor.type, tensor.shape)
        if fault is not None:
            raise UsageError(fault, where=f"tensor {tensor.name}", remedy="pad it, or use another type")
        parts.append(_string(tensor.name, tensor.name))
        parts.append(struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, tensor.type, offset))
        offset = align_up(offset + tensor_bytes(tensor.type, tensor.shape), alignment)
    return b"".join(parts)


def _typed(value: Any, key: str) -> tuple[ValueType, Any]:  # noqa: ANN401  # whatever a caller wants stored
    """The type of a value, given or inferred."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], ValueType):
        return value
    if isinstance(value, np.generic) and value.dtype.str[1:] in _BY_DTYPE:
        return _BY_DTYPE[value.dtype.str[1:]], value
    for kinds, type_ in _INFERRED:
        if isinstance(value, kinds):
            return type_, value
    raise UsageError(f"a {type(value).__name__} has no type in GGUF", where=f"key {key}")


def _value(type_: ValueType, value: Any, key: str) -> bytes:  # noqa: ANN401  # whatever a caller wants stored
    if type_ is ValueType.STRING:
        return _string(value, key)
    if type_ is ValueType.ARRAY:
        return _array(value, key)
    return _numbers(type_, [value], key).tobytes()


def _string(value: object, key: str) -> bytes:
    return _strings([value], key).block


def _strings(values: Iterable[Any], key: str) -> StringArray:
    if isinstance(values, StringArray):
        return values
    try:
        return StringArray.of(values)
    except (UnicodeEncodeError, TypeError, AttributeError):
        raise UsageError("holds what is not a string", where=f"key {key!a}", remedy="give str or bytes") from None


def _numbers(type_: ValueType, values: Any, key: str) -> NDArray[Any]:  # noqa: ANN401  # anything numpy takes
    """Numbers in the file's type; one that does not fit is refused, not wrapped."""
    dtype = g.NUMBERS[type_]
    exact = np.asarray(values)
    if exact.ndim != 1 or exact.dtype.kind not in ("b" if type_ is ValueType.BOOL else "iufb" if exact.size else "f"):
        raise UsageError(f"holds what is not {type_.name}", where=f"key {key}")
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            stored = exact.astype(dtype)
        bad = np.isinf(stored) & ~np.isinf(exact)
    else:
        with np.errstate(invalid="ignore"):
            stored = exact.astype(dtype)
        bad = stored != exact
    if bad.any():
        raise UsageError(
            f"{exact[bad][0]} does not fit {type_.name}", where=f"key {key}", remedy="name a wider ValueType"
        )
    return stored


def _array(value: Any, key: str) -> bytes:  # noqa: ANN401  # whatever a caller wants stored
    element, values = _elements(value, key)
    head = struct.pack("<IQ", element, len(values))
    if element is ValueType.STRING:
        return head + _strings(values, key).block
    if element is ValueType.ARRAY:
        return head + b"".join(_array(inner, key) for inner in values)
    return head + _numbers(element, values, key).tobytes()


def _elements(value: Any, key: str) -> tuple[ValueType, Any]:  # noqa: ANN401  # whatever a caller wants stored
    """Element type and elements of an array; a list takes the type of its first element."""
    if isinstance(value, TypedArray):
        return value.type, value.values
    if isinstance(value, StringArray):
        return ValueType.STRING, value
    if isinstance(value, np.ndarray):
        if value.dtype.str[1:] not in _BY_DTYPE:
            raise UsageError(f"an array of {value.dtype} has no type in GGUF", where=f"key {key}")
        return _BY_DTYPE[value.dtype.str[1:]], value
    if not value:
        raise UsageError("an empty list has no type", where=f"key {key}", remedy="give a TypedArray")
    first = _typed(value[0], key)[0]
    if first is ValueType.UINT32 and any(isinstance(v, int) and v < 0 for v in value):
        first = ValueType.INT32
    return first, value


def _write_data(file: BinaryIO, tensor: TensorData) -> None:
    """The bytes of a tensor, without copying where the array allows."""
    data = tensor.data() if callable(tensor.data) else tensor.data
    written = 0
    for piece in (data,) if isinstance(data, np.ndarray | bytes | bytearray | memoryview) else data:
        array = piece if isinstance(piece, np.ndarray) else np.frombuffer(piece, np.uint8)
        array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False)).reshape(-1)
        written += file.write(array.view(np.uint8).data)
    due = tensor_bytes(tensor.type, tensor.shape)
    if written != due:
        raise UsageError(
            f"has {written} bytes of data; {tensor.type.name} of shape {list(tensor.shape)} takes {due}",
            where=f"tensor {tensor.name}",
        )


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))


def _verify(path: Path) -> None:
    """Read back what was written: nothing is published that a reader would refuse."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            place(parse(data, str(path)), data, str(path))
        except BitNetError as error:
            raise UsageError(f"what is to be written is not a valid file: {error.what}", where=error.where) from None


def _sync_folder(folder: Path) -> None:
    """Make the new name durable, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
