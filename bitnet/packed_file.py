"""Packed matrices in a file: what loading a model makes of its ternary tensors, ready to be mapped.

    magic (8 bytes) · length of the header (u64) · sha256 of the header · header (JSON) · zeros · matrices

Each matrix begins at a multiple of 4096 bytes, so that a mapping of the file holds it aligned. The file is written in
pieces of whole huge pages: where the file system keeps such pages its mapping is made of them, and weights are read a
twentieth faster. The header names every matrix with its shape, scale, place and CRC-32, and the length of the whole.
The header is checked when a file is opened, the matrices by `PackedFile.sound`, in a thread that needs no interpreter
lock: a file that was cut short, or that a crash of the system left with holes, is not used. A CRC is no seal; the
folder belongs to whoever runs this.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.kernels.alignment import want_huge_pages
from bitnet.kernels.row_tiles import Tiles
from bitnet.kernels.variants import TILES, Layout
from bitnet.linear import TernaryMatrix

MAGIC = b"bitnetP1"
_PAGE = 4096
_PREFIX = len(MAGIC) + 8 + 32
_LONGEST_HEADER = 1 << 26  # bytes; a thousand layers need two million
_CHUNK = 8 << 20  # bytes written, or checked, between two looks at whether to stop: a few huge pages


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedMatrix:
    """A matrix as it lies in the file.

    Attributes:
        tiles: A view of the mapping.
        scale: Of the whole product; see `linear.Matrix`.
        crc: CRC-32 of the tiles.
    """

    tiles: Tiles
    scale: np.float32
    crc: int


class PackedFile:
    """An open file.

    Attributes:
        matrices: By the name of their tensor.
        about: What its writer noted about the model.
    """

    def __init__(self, matrices: Mapping[str, PackedMatrix], about: Mapping[str, Any]) -> None:
        self.matrices = matrices
        self.about = about
        self._checker = ThreadPoolExecutor(1, thread_name_prefix="bitnet-check")
        self._checked: Future[bool] = self._checker.submit(self._check)
        self._checker.shutdown(wait=False)

    def sound(self) -> bool:
        """Whether every matrix is what was written; waits until that is known."""
        return self._checked.result()

    def _check(self) -> bool:
        return all(_crc(m.tiles.data) == m.crc for m in self.matrices.values())


def _crc(data: NDArray[np.uint8]) -> int:
    flat, crc = data.reshape(-1), 0
    for begin in range(0, flat.size, _CHUNK):
        crc = zlib.crc32(flat[begin : begin + _CHUNK].data, crc)
    return crc


def open_packed(path: Path, key: str) -> PackedFile | None:
    """A file of this key, mapped; None where there is none, or one that cannot be used."""
    try:
        with path.open("rb") as file:
            prefix = file.read(_PREFIX)
            size = int.from_bytes(prefix[len(MAGIC) : len(MAGIC) + 8], "little")
            if not prefix.startswith(MAGIC) or size > _LONGEST_HEADER:
                return None
            raw = file.read(size)
            if hashlib.sha256(raw).digest() != prefix[-32:]:
                return None
            header = json.loads(raw)
            if header["key"] != key or header["n_bytes"] != os.fstat(file.fileno()).st_size:
                return None
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        want_huge_pages(mapped)
        data = np.frombuffer(mapped, np.uint8)
        return PackedFile({entry["name"]: _placed(data, entry) for entry in header["matrices"]}, header["about"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _placed(data: NDArray[np.uint8], entry: Mapping[str, Any]) -> PackedMatrix:
    layout: Layout = entry["layout"]
    tile = TILES[layout]
    shape = (-(-entry["n_row"] // tile.rows), -(-entry["n_col"] // tile.columns), tile.n_bytes)
    begin, size = entry["offset"], math.prod(shape)
    tiles = Tiles(
        data=data[begin : begin + size].reshape(shape), n_row=entry["n_row"], n_col=entry["n_col"], layout=layout
    )
    return PackedMatrix(tiles=tiles, scale=np.float32(float.fromhex(entry["scale"])), crc=entry["crc"])


def write_packed(
    path: Path, key: str, matrices: Sequence[TernaryMatrix], about: Mapping[str, Any], stop: Callable[[], bool]
) -> bool:
    """Write a file that is not there yet; whether all of it was written before `stop` said so.

    It is not waited for until the disk has it: after a crash of the system `PackedFile.sound` finds the holes.

    Raises:
        OSError: The file exists, or cannot be written.
    """
    entries: list[dict[str, Any]] = []
    offset = 0
    for m in matrices:
        if stop():
            return False
        entries.append(
            {
                "name": m.name,
                "layout": m.tiles.layout,
                "n_row": m.n_row,
                "n_col": m.n_col,
                "scale": float(m.scale).hex(),
                "offset": offset,
                "crc": _crc(m.tiles.data),
            }
        )
        offset += _up(m.tiles.data.nbytes)
    header: dict[str, Any] = {"key": key, "n_bytes": 0, "about": dict(about), "matrices": entries}
    # Numbers grow by what the header itself takes; it is given the room that the largest of them would need.
    begin = _up(_PREFIX + len(json.dumps(header)) + 20 * (len(entries) + 1))
    for entry in entries:
        entry["offset"] += begin
    header["n_bytes"] = begin + offset
    raw = json.dumps(header).encode()
    prefix = MAGIC + len(raw).to_bytes(8, "little") + hashlib.sha256(raw).digest()
    with path.open("xb", buffering=0) as file:
        front = np.frombuffer((prefix + raw).ljust(begin, b"\0"), np.uint8)
        for piece in _pieces([front, *(m.tiles.data for m in matrices)]):
            if stop():
                return False
            _write_all(file.fileno(), piece)
    return True


def _pieces(parts: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    """Parts, each padded to whole pages, one after another in pieces of `_CHUNK` bytes; the last may be smaller."""
    piece, filled = np.empty(_CHUNK, np.uint8), 0
    for part in parts:
        rest = part.reshape(-1)
        while rest.size:
            n = min(rest.size, _CHUNK - filled)
            piece[filled : filled + n], rest, filled = rest[:n], rest[n:], filled + n
            if not rest.size:
                end = _up(filled)
                piece[filled:end], filled = 0, end
            if filled == _CHUNK:
                yield piece
                filled = 0
    yield piece[:filled]


def _write_all(descriptor: int, data: NDArray[np.uint8]) -> None:
    at = 0
    while at < data.size:
        at += os.write(descriptor, data[at:].data)


def _up(size: int) -> int:
    return -(-size // _PAGE) * _PAGE
