"""TL1 and TL2 as the oracle reads them: where each weight lies, computed one index at a time from the specification.

Nothing here is shared with the engine's codecs, which cut and transpose whole tiles. A file does not say how it is
tiled; the tiles come from a `kernel_config.ini` (sections with m, k, bm, bk, bmm), in the metadata or beside the file.
"""

from __future__ import annotations

from configparser import ConfigParser
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitnet.gguf import GGUF
from reference.runner import ReferenceUnavailableError

Ints = NDArray[np.int64]

_TAIL = 32
#: Rows of 32 in the order of their bytes: the second and third eight change places.
_PLACE = np.arange(32).reshape(4, 8)[[0, 2, 1, 3]].reshape(-1)


class Tiling(NamedTuple):
    """Rows and columns of a tile, and rows that a kernel takes at once."""

    bm: int
    bk: int
    bmm: int


def tiling(gguf: GGUF, rows: int, columns: int) -> Tiling:
    """The tiles of a matrix of this shape. Raises `ReferenceUnavailableError` where no configuration names it."""
    text = gguf.metadata.get("bitnet.kernel_config")
    beside = gguf.path.with_name("kernel_config.ini")
    if not isinstance(text, str):
        text = beside.read_text() if beside.is_file() else ""
    config = ConfigParser(interpolation=None)
    config.read_string(text)
    for name in config.sections():
        m, k, bm, bk, bmm = (int(config[name][field]) for field in ("m", "k", "bm", "bk", "bmm"))
        if (m, k) == (rows, columns):
            return Tiling(bm, bk, bmm)
    raise ReferenceUnavailableError(
        f"the tiles of {rows} × {columns} are unknown",
        remedy="the oracle takes them from a kernel_config.ini beside the file",
    )


def tl1(raw: NDArray[np.uint8], rows: int, columns: int, tile: Tiling) -> tuple[NDArray[np.int8], np.float32]:
    """Trits [rows, columns] and the scale."""
    r, c = np.indices((rows, columns))
    step = 256 // tile.bmm
    byte = r // tile.bm
    for size, index in (
        (columns // tile.bk, c // tile.bk),
        (tile.bm // tile.bmm, r % tile.bm // tile.bmm),
        (tile.bk // step, c % tile.bk // step),
        (tile.bmm // 16, r % tile.bmm // 16),
        (step // 4, c % step // 4),
        (16, r % 16),
    ):
        byte = byte * size + index
    return _of_pairs(_half(raw[byte], c % 4 >= 2), c), _scale(raw)


def tl2(raw: NDArray[np.uint8], rows: int, columns: int, tile: Tiling) -> tuple[NDArray[np.int8], np.float32]:
    """Trits [rows, columns] and the scale."""
    three = columns // tile.bk * tile.bk
    out = np.empty((rows, columns), np.int8)
    signs = raw[rows * three // 6 :]
    if three:
        r, c = np.indices((rows, three))
        size = _half(raw[_tiled(r, c, tile.bm, tile.bk, three, 6)], c % 6 >= 3)
        word = r // tile.bm
        for n, index in (
            (three // tile.bk, c // tile.bk),
            (tile.bm // 32, r % tile.bm // 32),
            (tile.bk // 24, c % tile.bk // 24),
            (16, r % 16),
        ):
            word = word * n + index
        bit = 15 - (2 * (c % 24 // 3) + r % 32 // 16)
        both = signs[2 * word].astype(np.int64) | signs[2 * word + 1].astype(np.int64) << 8
        v = np.where(both >> bit & 1, -size, size) + 13
        out[:, :three] = v // np.array([9, 3, 1])[c % 3] % 3 - 1
    if three < columns:
        r, c = np.indices((rows, columns - three))
        pairs = signs[rows * three // 24 :]
        out[:, three:] = _of_pairs(_half(pairs[_tiled(r, c, tile.bm, 32, columns - three, 4)], c % 4 >= 2), c)
    return out, _scale(raw)


def _tiled(r: Ints, c: Ints, bm: int, bk: int, columns: int, width: int) -> Ints:
    """Byte of a weight where 32 rows of `width` columns each take a byte, reordered."""
    byte: Ints = r // bm
    for n, index in (
        (columns // bk, c // bk),
        (bm // 32, r % bm // 32),
        (bk // width, c % bk // width),
        (32, _PLACE[r % 32]),
    ):
        byte = byte * n + index
    return byte


def _half(byte: NDArray[np.uint8], low: NDArray[np.bool_]) -> Ints:
    return np.where(low, byte & 15, byte >> 4).astype(np.int64)


def _of_pairs(pair: Ints, c: Ints) -> NDArray[np.int8]:
    trits: NDArray[np.int8] = (np.where(c % 2 == 0, pair // 3, pair % 3) - 1).astype(np.int8)
    return trits


def _scale(raw: NDArray[np.uint8]) -> np.float32:
    return np.float32(raw[-_TAIL : -_TAIL + 4].view("<f4")[0])
