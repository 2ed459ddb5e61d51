"""TL2, bitnet.cpp's table format for x86: triples of weights in five bits, and pairs for the columns left over.

A triple is v = 9·w0 + 3·w1 + w2; |v| takes four bits and its sign one. Columns up to the last whole tile of bk are in
triples, the others (a multiple of 32) in pairs 3·w0 + w1 + 4. Three parts follow each other, each with all its rows:

- Magnitudes: tiles of bm rows; tiles of bk columns; 32 rows; 6 columns; one byte a row, the first triple in its high
  half. Of the 32 bytes, the second and third eight change places.
- Signs: the same tiles; 32 rows; 24 columns in sixteen 16-bit words. Word r mod 16 holds triple t of row r at bit
  15 − (2t + r div 16).
- Pairs: tiles of bm rows; 32 columns; 32 rows; 4 columns, one byte a row, in the order of the magnitudes.

Zeros fill the tensor up to a size that is computed as if all columns but 256 were in triples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bitnet.codecs.base import Codec, Raw, Ternary, Trits
from bitnet.codecs.lut import TableFormat, pack, table_codec, unpack
from bitnet.codecs.tiles import DEFAULT_TILES, Tile, Tiles
from bitnet.gguf_types import GGMLType

_ROWS = 32  # that a kernel takes at once
_EIGHTS = [0, 2, 1, 3]  # the order of a byte's rows, in groups of eight; its own inverse
_V = np.arange(-13, 14)
#: The three trits of every v + 13, as one item of three bytes.
_TRITS_OF_TRIPLE = (
    np.stack([(_V + 13) // 9 - 1, (_V + 13) // 3 % 3 - 1, (_V + 13) % 3 - 1], axis=1).astype(np.int8).view("V3")[:, 0]
)
_P = np.arange(9)
_TRITS_OF_PAIR = np.stack([_P // 3 - 1, _P % 3 - 1], axis=1).astype(np.int8).view("V2")[:, 0]


def unpack_tl2(raw: Raw, shape: Sequence[int], tile: Tile, rows: slice | None = None) -> Ternary:
    """Trits [rows, n_col] and the scale.

    Raises:
        ModelFileError: Wrong size, a tile that does not suit the shape, a code that no packer writes, or a scale that
            is not finite.
    """
    return unpack(_FORMAT, raw, shape, tile, rows)


def pack_tl2(trits: Trits, scale: float, tile: Tile) -> Raw:
    """The bytes of a tensor. Raises `UsageError` unless trits are −1, 0 and 1 and the tile suits their shape."""
    return pack(_FORMAT, trits, scale, tile)


def codec(tiles: Tiles = DEFAULT_TILES) -> Codec:
    """TL2 with the tiles of these shapes."""
    return table_codec(_FORMAT, tiles)


def _parts(codes: Raw, shape: tuple[int, int], tile: Tile) -> tuple[Raw, Raw, Raw, Raw]:
    """Magnitudes, signs and pairs, each [n_row / bm, bytes of a tile of rows], and what fills the tensor."""
    n_row, n_col = shape
    three = n_col // tile.bk * tile.bk
    ends = np.cumsum([n_row * three // 6, n_row * three // 24, n_row * (n_col - three) // 4])
    magnitudes, signs, pairs, rest = np.split(codes, ends)
    n_tile = n_row // tile.bm
    return magnitudes.reshape(n_tile, -1), signs.reshape(n_tile, -1), pairs.reshape(n_tile, -1), rest


def _read(codes: Raw, shape: tuple[int, int], tile: Tile, i: int) -> Trits:
    n_col = shape[1]
    three = n_col // tile.bk * tile.bk
    magnitudes, signs, pairs, rest = _parts(codes, shape, tile)
    if rest.any():
        raise ValueError("codes after the last")
    trits = np.empty((tile.bm, n_col), np.int8)
    if three:
        v = _halves(magnitudes[i], tile.bm, tile.bk // 6).view(np.int8)
        negative = _signs(signs[i], tile.bm, tile.bk)
        if v.max() > 13:
            raise ValueError("a triple above 13")
        if (negative & (v == 0)).any():
            raise ValueError("a negative zero")
        np.negative(v, out=v, where=negative)
        v += 13
        trits[:, :three] = _TRITS_OF_TRIPLE[v].view(np.int8).reshape(tile.bm, three)
    if three < n_col:
        p = _halves(pairs[i], tile.bm, _ROWS // 4)
        if p.max() > 8:
            raise ValueError("a pair above 8")
        trits[:, three:] = _TRITS_OF_PAIR[p].view(np.int8).reshape(tile.bm, n_col - three)
    return trits


def _write(trits: Trits, tile: Tile) -> Raw:
    shape = n_row, n_col = trits.shape[0], trits.shape[1]
    three = n_col // tile.bk * tile.bk
    codes = np.empty(n_row * three * 5 // 24 + n_row * (n_col - three) // 4, np.uint8)
    magnitudes, signs, pairs, _ = _parts(codes, shape, tile)
    for i, begin in enumerate(range(0, n_row, tile.bm)):
        part = trits[begin : begin + tile.bm]
        if three:
            w = part[:, :three].reshape(tile.bm, -1, 3)
            v = w[..., 0] * 9 + w[..., 1] * 3 + w[..., 2]
            magnitudes[i] = _bytes(np.abs(v).view(np.uint8), tile.bk // 6)
            signs[i] = _words(v < 0, tile.bk)
        if three < n_col:
            w = part[:, three:].reshape(tile.bm, -1, 2)
            pairs[i] = _bytes((w[..., 0] * 3 + w[..., 1] + np.int8(4)).view(np.uint8), _ROWS // 4)
    return codes


def _halves(packed: Raw, bm: int, columns: int) -> Raw:
    """Bytes of a tile of rows, `columns` of them in a block of columns, as their two halves, [bm, numbers]."""
    nested = packed.reshape(-1, bm // _ROWS, columns, 4, 8)[:, :, :, _EIGHTS]
    rows_first = nested.transpose(1, 3, 4, 0, 2).reshape(bm, -1)
    return np.stack([rows_first >> 4, rows_first & 15], axis=-1).reshape(bm, -1)


def _bytes(numbers: Raw, columns: int) -> Raw:
    """The other way: numbers [bm, n] to bytes."""
    bm = len(numbers)
    packed = np.left_shift(numbers[:, 0::2], 4, dtype=np.uint8)
    packed |= numbers[:, 1::2]
    nested = packed.reshape(bm // _ROWS, 4, 8, -1, columns)[:, _EIGHTS]
    return nested.transpose(3, 0, 4, 1, 2).reshape(-1)


def _signs(packed: Raw, bm: int, bk: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Which triples are negative, [bm, triples]."""
    bits = np.unpackbits(packed.view("<u2").astype(">u2").view(np.uint8)).view(np.bool_)
    nested = bits.reshape(-1, bm // _ROWS, bk // 24, 16, 8, 2)
    return nested.transpose(1, 5, 3, 0, 2, 4).reshape(bm, -1)


def _words(negative: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], bk: int) -> Raw:
    """The other way: [bm, triples] to bytes."""
    nested = negative.reshape(len(negative) // _ROWS, 2, 16, -1, bk // 24, 8)
    bits = np.ascontiguousarray(nested.transpose(3, 0, 4, 2, 5, 1))
    return np.packbits(bits.reshape(-1)).view(">u2").astype("<u2").view(np.uint8)


_FORMAT = TableFormat(type=GGMLType.TL2, read=_read, write=_write)
CODEC = codec()
