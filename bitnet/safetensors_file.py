"""Safetensors: the tensors of one file or of several shards, mapped; and a writer that holds one tensor at a time.

The `safetensors` library judges each file: its header, its offsets, its length. The bytes are then viewed where they
lie in the mapping, because the library copies, and numpy has no bfloat16.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from bitnet.errors import ModelFileError, UsageError
from bitnet.gguf import changed, identity, release_pages

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_JSON = 64 << 20  # bytes; the index of the largest published checkpoint is under one

#: Bytes of an element, for the types a model of ours can have.
ELEMENT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Where a tensor lies.

    Attributes:
        file: The shard.
        dtype: As safetensors spells it: F32, F16, BF16, U8, ….
        shape: Slowest dimension first.
        begin, end: Bytes of the file.
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Shards:
    """The tensors of a checkpoint folder.

    Attributes:
        files: The shards, in the order of their names.
        entries: Every tensor, by name.

    Raises:
        ModelFileError: No safetensors, a shard is missing or damaged, or index and shards disagree.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = self._listed()
        self.files = sorted({folder / file for file in listed.values()}) if listed else [folder / SINGLE]
        self.entries: dict[str, Entry] = {}
        self._maps: dict[Path, NDArray[np.uint8]] = {}
        self._identities: dict[Path, tuple[int, ...]] = {}
        for file in self.files:
            self._open(file)
        for name, file_name in listed.items():
            found = self.entries.get(name)
            if found is None or found.file.name != file_name:
                raise ModelFileError(
                    f"tensor {name} is listed in {file_name}, which does not hold it",
                    where=folder / INDEX,
                    remedy="index and shards belong to different downloads; download the folder again",
                )
        extra = sorted(self.entries.keys() - listed.keys()) if listed else []
        if extra:
            raise ModelFileError(
                f"{len(extra)} tensor(s) of the shards are not listed, {extra[0]} of {self.entries[extra[0]].file.name}"
                " among them",
                where=folder / INDEX,
                remedy="index and shards belong to different downloads; download the folder again",
            )

    @property
    def n_bytes(self) -> int:
        """Size of all files."""
        return sum(len(data) for data in self._maps.values())

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor: a read-only view of the mapping. Raises `ModelFileError` if its file was changed."""
        entry = self.entries[name]
        self._check_file(entry.file)
        return self._maps[entry.file][entry.begin : entry.end]

    def check_unchanged(self) -> None:
        """Refuse files that were written to in place; as `GGUF.check_unchanged`."""
        for file in self.files:
            self._check_file(file)

    def _check_file(self, file: Path) -> None:
        if changed(file, self._identities[file]):
            raise ModelFileError(
                "the file was changed after it was opened", where=file, remedy="open the checkpoint again"
            )

    def release(self) -> None:
        """Give the pages read so far back to the system; they are read again when they are needed."""
        for data in self._maps.values():
            release_pages(data)

    def _listed(self) -> dict[str, str]:
        """Shard of every tensor by the index; empty where there is one file and no index."""
        if (self.folder / SINGLE).exists():
            return {}
        if not (self.folder / INDEX).exists():
            raise no_checkpoint(self.folder, "holds no safetensors")
        weight_map = read_json(self.folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelFileError("has no weight_map", where=self.folder / INDEX, remedy="download the folder again")
        for name, file in weight_map.items():
            if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
                raise ModelFileError(
                    f"weight_map names {file!r} for {name}, which is no safetensors file of this folder",
                    where=self.folder / INDEX,
                )
        return weight_map

    def _open(self, path: Path) -> None:
        try:
            with safe_open(path, framework="numpy") as library:
                shapes = {name: library.get_slice(name) for name in library.keys()}  # noqa: SIM118  # no mapping
                described = {name: (s.get_dtype(), tuple(s.get_shape())) for name, s in shapes.items()}
            with path.open("rb") as file:
                data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
                self._identities[path] = identity(os.fstat(file.fileno()))
        except FileNotFoundError:
            raise ModelFileError(
                "the shard is missing",
                where=path,
                remedy=f"{INDEX} lists it; download the folder again",
            ) from None
        except SafetensorError as error:
            raise ModelFileError(
                f"is not a whole safetensors file: {str(error).removeprefix('Error while deserializing header: ')}",
                where=path,
                remedy="it is damaged or half downloaded; download it again",
            ) from None
        except (OSError, ValueError) as error:
            raise ModelFileError(
                f"cannot be opened: {error}", where=path, remedy="check the path and its rights"
            ) from None
        self._maps[path] = data
        size = int.from_bytes(data[:8].tobytes(), "little")
        offsets = json.loads(data[8 : 8 + size].tobytes())
        for name, (dtype, shape) in described.items():
            begin, end = (8 + size + n for n in offsets[name]["data_offsets"])
            if name in self.entries:
                raise ModelFileError(f"tensor {name} is in {self.entries[name].file.name} too", where=path)
            if dtype in ELEMENT_BYTES and end - begin != math.prod(shape) * ELEMENT_BYTES[dtype]:
                raise ModelFileError(f"tensor {name} is described twice, and differently", where=path)
            self.entries[name] = Entry(name=name, file=path, dtype=dtype, shape=shape, begin=begin, end=end)


def no_checkpoint(folder: Path, what: str) -> ModelFileError:
    """An error about a folder, with what it has in place of a checkpoint."""
    names = sorted(path.name for path in folder.iterdir())
    ggufs = [name for name in names if name.endswith(".gguf")]
    if ggufs:
        remedy = f"give the path of the GGUF file in it: {folder / ggufs[0]}"
    elif any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        remedy = "its weights are pickles, which can run code when read; save them as safetensors first"
    else:
        remedy = f"give a GGUF file, or the folder of a checkpoint: config.json and {SINGLE}, or {INDEX} and its shards"
    return ModelFileError(what, where=folder.absolute(), remedy=remedy)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises `ModelFileError` where there is none."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise ModelFileError(f"is larger than {MAX_JSON >> 20} MiB", where=path)
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelFileError(
            "there is no such file", where=path, remedy="a checkpoint is a folder with config.json and safetensors"
        ) from None
    except OSError as error:
        raise ModelFileError(f"cannot be read: {error.strerror}", where=path, remedy="check its permissions") from None
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"is not JSON: {error}", where=path, remedy="download it again") from None
    if not isinstance(value, dict):
        raise ModelFileError("is not a JSON object", where=path, remedy="download it again")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorToWrite:
    """A tensor to write: its bytes come from `data` when its turn comes, in pieces if they are many."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Callable[[], Iterable[NDArray[Any]]]

    @property
    def n_bytes(self) -> int:
        """Size in the file."""
        return math.prod(self.shape) * ELEMENT_BYTES[self.dtype]


def write(path: Path, tensors: Iterable[TensorToWrite], metadata: Mapping[str, str]) -> None:
    """Write one safetensors file in place; the caller sees to it that nobody finds it half made.

    Raises:
        UsageError: A tensor is not as long as its shape says, or the disk refuses.
    """
    tensors = sorted(tensors, key=lambda t: (-ELEMENT_BYTES[t.dtype], t.name))  # so every offset is aligned
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.n_bytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    try:
        with path.open("xb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in tensors:
                written = sum(file.write(np.ascontiguousarray(piece).data.cast("B")) for piece in tensor.data())
                if written != tensor.n_bytes:
                    raise UsageError(f"tensor {tensor.name} has {written} bytes, not {tensor.n_bytes}", where=path)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UsageError(
            f"cannot be written: {error.strerror or error}", where=path, remedy="check the disk"
        ) from error
