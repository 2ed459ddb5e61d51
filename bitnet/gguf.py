"""GGUF files: opened by mapping, checked before anything is believed, never copied.

`read` parses the header and verifies where every tensor lies; tensor data is paged in when `GGUF.raw` is used. A model
that is split into shards is one object, whichever of them is opened.
`write` makes files that `read` accepts, and leaves the old file in place until the new one is whole.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import GGUFError, ModelFileError
from bitnet.gguf_header import Header, parse
from bitnet.gguf_layout import place
from bitnet.gguf_shards import check_shards, shard_paths
from bitnet.gguf_types import GGMLType, StringArray, TensorData, TensorInfo, TypedArray, ValueType
from bitnet.gguf_write import write

__all__ = [
    "GGUF",
    "GGMLType",
    "GGUFError",
    "StringArray",
    "TensorData",
    "TensorInfo",
    "TypedArray",
    "ValueType",
    "from_bytes",
    "read",
    "write",
]

T = TypeVar("T")
D = TypeVar("D")
_REQUIRED: Any = object()  # tells a missing default from None
_HASH_CHUNK = 16 << 20  # bytes


@dataclass(frozen=True, slots=True)
class _File:
    """One mapped file."""

    path: Path
    data: mmap.mmap | bytes
    identity: tuple[int, ...]
    header: Header


class GGUF:
    """An open file: what its header says, and views of its tensors.

    Attributes:
        path: As given.
        paths: Every file of the model, in order; one where it is not split.
        identities: What `identity` says of each since it was opened.
        version: Of the format, 2 or 3.
        alignment: Of tensors, bytes.
        metadata: Value of every key: str, bool, int, float, numpy arrays of numbers, `StringArray` for strings
            (tokens are bytes), `TypedArray` for arrays of arrays.
        types: Type of every key.
        tensors: By name, in the file's order.
        made_here: Whether packed bytes are made by this engine as they are asked for, so that their layout is known.
        special_ids: Ids of "bos" and "eos" that a configuration beside the tokenizer gives.
        notices: What is odd but harmless: gaps, trailing bytes, padding that is not zero, types read by their size.
    """

    made_here = False
    special_ids: Mapping[str, int] = MappingProxyType({})

    def __init__(self, path: Path, files: Sequence[_File]) -> None:
        first = files[0].header
        tensors: dict[str, TensorInfo] = {}
        notices: list[str] = []
        for i, file in enumerate(files):
            arch = first.metadata.get("general.architecture")
            placed, odd = place(file.header, file.data, str(file.path), arch)
            tensors |= {name: replace(info, shard=i) for name, info in placed.items()} if i else placed
            notices += [f"{file.path.name}: {notice}" for notice in odd] if len(files) > 1 else odd
        self.path = path
        self.paths = tuple(file.path for file in files)
        self.version = first.version
        self.alignment = first.alignment
        self.metadata: Mapping[str, Any] = MappingProxyType(first.metadata)
        self.types: Mapping[str, ValueType] = MappingProxyType(first.types)
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(tensors)
        self.notices = tuple(notices)
        self._data = tuple(np.frombuffer(file.data, np.uint8) for file in files)
        self.identities = tuple(file.identity for file in files)
        self._sha256: str | None = None

    def __repr__(self) -> str:
        return f"GGUF({str(self.path)!r}, {len(self.metadata)} keys, {len(self.tensors)} tensors)"

    @property
    def n_bytes(self) -> int:
        """Size of the file, or of all shards."""
        return sum(map(len, self._data))

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor: a read-only view of the mapping, exactly `n_bytes` long.

        Raises:
            GGUFError: There is no such tensor, or the file was changed after it was opened.
        """
        info = self.tensors.get(name)
        if info is None:
            raise GGUFError("there is no such tensor", path=self.path, field=f"tensor {name}")
        self._check_file(info.shard)
        return self._data[info.shard][info.offset : info.offset + info.n_bytes]

    @overload
    def get(self, key: str, expected: type[T]) -> T: ...
    @overload
    def get(self, key: str, expected: ValueType) -> Any: ...  # noqa: ANN401  # the caller names the type at run time
    @overload
    def get(self, key: str, expected: type[T], default: D) -> T | D: ...
    @overload
    def get(self, key: str, expected: ValueType, default: Any) -> Any: ...  # noqa: ANN401  # as above
    def get(self, key: str, expected: type[Any] | ValueType, default: Any = _REQUIRED) -> Any:
        """A value of the type that its user needs.

        Args:
            key: Its name.
            expected: A Python type (str, bool, int, float, list, `StringArray`, numpy.ndarray), or the exact
                `ValueType`. An int is any of the integer types; a list is any array, made one.
            default: Taken when the key is missing; without it, the key is required.

        Raises:
            GGUFError: The key is missing or of another type.
        """
        if key not in self.metadata:
            if default is _REQUIRED:
                raise GGUFError(
                    "a required key is missing",
                    path=self.path,
                    field=key,
                    remedy="the file is incomplete or was made for another engine; convert it again",
                )
            return default
        value, type_ = self.metadata[key], self.types[key]
        if isinstance(expected, ValueType):
            if type_ is expected:
                return value
        elif expected is list and type_ is ValueType.ARRAY:
            return value.tolist() if hasattr(value, "tolist") else list(value)
        elif isinstance(value, expected) and isinstance(value, bool) == (expected is bool):
            return value
        wanted = expected.name if isinstance(expected, ValueType) else expected.__name__
        raise GGUFError(
            f"is of type {type_.name}, but {wanted} is due",
            path=self.path,
            field=key,
            remedy="the file was converted wrongly; convert it again",
        )

    def sha256(self) -> str:
        """Digest of the whole file (of all shards, one after the other), in hexadecimal; read once, then kept."""
        if self._sha256 is None:
            digest = hashlib.sha256()
            for shard, data in enumerate(self._data):
                self._check_file(shard)
                for begin in range(0, len(data), _HASH_CHUNK):
                    digest.update(data[begin : begin + _HASH_CHUNK].data)
                self._check_file(shard)
            self._sha256 = digest.hexdigest()
        return self._sha256

    def release(self) -> None:
        """Give the pages read so far back to the system; they are read again when they are needed."""
        for mapped in self._data:
            release_pages(mapped)

    def check_unchanged(self) -> None:
        """Refuse what was written to in place; a file that was replaced or removed is still mapped as it was.

        One look at each file, to be had before its mapping is read: then no answer comes from other weights, and none
        dies of a file that was cut. What is written between the look and the reading cannot be told.

        Raises:
            ModelFileError: A file was changed after it was opened.
        """
        for shard in range(len(self.paths)):
            self._check_file(shard)

    def _check_file(self, shard: int) -> None:
        if changed(self.paths[shard], self.identities[shard]):
            raise GGUFError(
                "the file was changed after it was opened",
                path=self.paths[shard],
                remedy="open it again; replace model files by renaming, not by writing over them",
            )


def changed(path: Path, opened: tuple[int, ...]) -> bool:
    """Whether a file, known by its `identity` when it was opened, was written to in place since."""
    try:
        now = identity(path.stat())
    except OSError:
        return False  # removed, and still mapped as it was
    return now[:2] == opened[:2] and now != opened


def release_pages(mapped: NDArray[np.uint8]) -> None:
    """Give back the pages of a mapping, known by an array over the whole of it, where the system can."""
    buffer: Any = mapped.base
    memory = buffer.obj if isinstance(buffer, memoryview) else buffer
    if isinstance(memory, mmap.mmap) and hasattr(memory, "madvise"):
        memory.madvise(mmap.MADV_DONTNEED)


def identity(status: os.stat_result) -> tuple[int, ...]:
    """What tells a file from another, and from itself after a change: device, inode, size, time of modification."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def read(path: str | PathLike[str]) -> GGUF:
    """Open a GGUF file, and with one shard of a split model all of them: parse and check headers, map tensors.

    Raises:
        ModelFileError: There is no such file, or it cannot be read, or a shard is missing.
        GGUFError: A rule of the format is broken; file, field and offset are named.
        ResourceLimitError: The header is larger than any model's.
    """
    path = Path(path)
    opened = _open(path)
    paths = shard_paths(path, opened.header.metadata)
    files = [opened if shard == path else _open(shard) for shard in paths]
    check_shards(paths, [file.header for file in files])
    return GGUF(path, files)


def from_bytes(data: bytes, name: str = "bytes") -> GGUF:
    """A GGUF that lies in memory; it cannot be split. Errors are those of `read`, and name it by `name`."""
    return GGUF(Path(name), [_File(Path(name), data, (), parse(data, name))])


def _open(path: Path) -> _File:
    """Map a file and parse its header."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ModelFileError("is a directory", where=path, remedy="give the path of a .gguf file in it")
        if not stat.S_ISREG(status.st_mode):
            raise ModelFileError("is not a regular file", where=path, remedy="give the path of a .gguf file")
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size == 0:
                raise GGUFError(
                    "the file is empty", path=path, field="magic", offset=0, remedy="download or convert it again"
                )
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise ModelFileError("there is no such file", where=path, remedy="check the path") from None
    except PermissionError:
        raise ModelFileError("may not be read by this user", where=path, remedy="check its permissions") from None
    except (OSError, ValueError) as error:
        raise ModelFileError(f"cannot be opened: {error}", where=path, remedy="check the path and the disk") from None
    header = parse(data, str(path))
    if hasattr(mmap, "MADV_DONTNEED"):
        data.madvise(mmap.MADV_DONTNEED, 0, header.end)  # its pages were copied, and need not stay in memory
    return _File(path, data, identity(status), header)
