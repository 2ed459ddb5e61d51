"""TL1, bitnet.cpp's table format for ARM: pairs of weights in four bits, in tiles.

A pair is 3·w0 + w1 + 4, 0 to 8. A byte holds four columns of a row, the first pair in its high half. Bytes lie, from
the outermost: tiles of bm rows; tiles of bk columns; bmm rows; 256 / bmm columns; 16 rows; 4 columns; one row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bitnet.codecs.base import Codec, Raw, Ternary, Trits
from bitnet.codecs.lut import TableFormat, pack, table_codec, unpack
from bitnet.codecs.tiles import DEFAULT_TILES, Tile, Tiles
from bitnet.gguf_types import GGMLType

_BYTES = np.arange(256)
_PAIRS = np.stack([_BYTES >> 4, _BYTES & 15], axis=1)
#: The four trits of every byte, as one item of four bytes.
_TRITS_OF_BYTE = np.stack([_PAIRS // 3 - 1, _PAIRS % 3 - 1], axis=2).reshape(256, 4).astype(np.int8).view("V4")[:, 0]
_IS_CODE = (_PAIRS[:, 0] <= 8) & (_PAIRS[:, 1] <= 8)


def unpack_tl1(raw: Raw, shape: Sequence[int], tile: Tile, rows: slice | None = None) -> Ternary:
    """Trits [rows, n_col] and the scale.

    Raises:
        ModelFileError: Wrong size, a tile that does not suit the shape, a pair above 8, or a scale that is not finite.
    """
    return unpack(_FORMAT, raw, shape, tile, rows)


def pack_tl1(trits: Trits, scale: float, tile: Tile) -> Raw:
    """The bytes of a tensor. Raises `UsageError` unless trits are −1, 0 and 1 and the tile suits their shape."""
    return pack(_FORMAT, trits, scale, tile)


def codec(tiles: Tiles = DEFAULT_TILES) -> Codec:
    """TL1 with the tiles of these shapes."""
    return table_codec(_FORMAT, tiles)


def _read(codes: Raw, shape: tuple[int, int], tile: Tile, i: int) -> Trits:
    n_col, step = shape[1], 256 // tile.bmm
    size = tile.bm * n_col // 4
    packed = codes[i * size : (i + 1) * size]
    if not _IS_CODE[packed].all():
        raise ValueError("a pair above 8")
    nested = packed.reshape(n_col // tile.bk, tile.bm // tile.bmm, tile.bk // step, tile.bmm // 16, step // 4, 16)
    rows_first = np.ascontiguousarray(nested.transpose(1, 3, 5, 0, 2, 4))
    return _TRITS_OF_BYTE[rows_first.reshape(-1)].view(np.int8).reshape(tile.bm, n_col)


def _write(trits: Trits, tile: Tile) -> Raw:
    (n_row, n_col), step = trits.shape, 256 // tile.bmm
    codes = np.empty((n_row // tile.bm, tile.bm * n_col // 4), np.uint8)
    for out, begin in zip(codes, range(0, n_row, tile.bm), strict=True):
        columns = trits[begin : begin + tile.bm].reshape(-1, 4).T
        pairs = (columns[0::2] * 3 + columns[1::2] + np.int8(4)).view(np.uint8)
        packed = pairs[0] << 4 | pairs[1]
        nested = packed.reshape(tile.bm // tile.bmm, tile.bmm // 16, 16, n_col // tile.bk, tile.bk // step, step // 4)
        out[:] = nested.transpose(3, 0, 4, 1, 5, 2).reshape(-1)
    return codes.reshape(-1)


_FORMAT = TableFormat(type=GGMLType.TL1, read=_read, write=_write)
CODEC = codec()
