"""What TL1 and TL2 share: codes in tiles of rows, a scale after them, and no word in the file on the size of a tile.

Both hold groups of weights as numbers that bitnet.cpp looks up in tables: pairs 3·w0 + w1 + 4 and, in TL2, triples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bitnet.codecs.base import (
    Codec,
    Codes,
    Float32,
    Raw,
    Ternary,
    Trits,
    check_trits,
    flat_bytes,
    matrix_shape,
    one_scale,
    put_scale,
    read_scale,
    row_range,
)
from bitnet.codecs.i2_s import trits_to_codes
from bitnet.codecs.tiles import Tile, Tiles, tile_of
from bitnet.errors import ModelFileError, UsageError
from bitnet.gguf_types import SCALE_TAIL, GGMLType, tensor_bytes

_GROUP = 128  # weights that kernels take at once


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFormat:
    """One of the two.

    Attributes:
        type: TL1 or TL2.
        read: (codes, shape, tile, i) → trits [bm, n_col] of the i-th tile of rows; raises `ValueError` with what is
            wrong with a code.
        write: (trits, tile) → codes without padding.
    """

    type: GGMLType
    read: Callable[[Raw, tuple[int, int], Tile, int], Trits]
    write: Callable[[Trits, Tile], Raw]


def unpack(form: TableFormat, raw: Raw, shape: Sequence[int], tile: Tile, rows: slice | None) -> Ternary:
    """Trits [rows, n_col] and the scale; whole tiles of rows are read, and cut."""
    n_row, n_col = matrix_shape(form.type, shape)
    tile_of({(form.type, n_row, n_col): tile}, form.type, (n_row, n_col))
    flat = flat_bytes(form.type, raw, shape)
    wanted = row_range(rows, n_row)
    trits = np.empty((wanted.stop - wanted.start, n_col), np.int8)
    for i in range(wanted.start // tile.bm, -(-wanted.stop // tile.bm)):
        begin, end = max(wanted.start, i * tile.bm), min(wanted.stop, (i + 1) * tile.bm)
        part = _read(form, flat, (n_row, n_col), tile, i)
        trits[begin - wanted.start : end - wanted.start] = part[begin - i * tile.bm : end - i * tile.bm]
    return Ternary(trits=trits, scale=read_scale(form.type, flat))


def pack(form: TableFormat, trits: Trits, scale: float, tile: Tile) -> Raw:
    """Codes, zeros up to the size of the format, scale, padding."""
    trits = check_trits(trits, 1)
    n_row, n_col = matrix_shape(form.type, trits.shape)
    tile_of({(form.type, n_row, n_col): tile}, form.type, (n_row, n_col), UsageError)
    raw = np.zeros(tensor_bytes(form.type, trits.shape), np.uint8)
    put_scale(raw, scale)
    codes = form.write(trits, tile)
    raw[: len(codes)] = codes
    return raw


def kernel_codes(form: TableFormat, raw: Raw, shape: Sequence[int], tile: Tile) -> Codes:
    """Checked codes in the order of I2_S, a tile of rows at a time; rows are padded to whole groups with zeros."""
    n_row, n_col = matrix_shape(form.type, shape)
    width = -(-n_col // _GROUP) * _GROUP
    codes = np.empty((n_row, width // 4), np.uint8)
    padded = np.zeros((tile.bm, width), np.int8)
    scale = 0.0
    for begin in range(0, n_row, tile.bm):
        part = unpack(form, raw, shape, tile, slice(begin, begin + tile.bm))
        padded[:, :n_col] = part.trits
        codes[begin : begin + tile.bm] = trits_to_codes(padded)
        scale = part.scale or 0.0
    return codes, scale, None


def table_codec(form: TableFormat, tiles: Tiles) -> Codec:
    """The format with the tile of every shape that `tiles` knows."""

    def tile(shape: Sequence[int]) -> Tile:
        return tile_of(tiles, form.type, matrix_shape(form.type, shape))

    def decode(raw: Raw, shape: Sequence[int]) -> Float32:
        return unpack(form, raw, shape, tile(shape), None).dense().reshape(shape)

    def encode(weights: Float32 | Ternary) -> Raw:
        trits, scale = one_scale(weights, form.type)
        return pack(form, trits, scale, tile_of(tiles, form.type, matrix_shape(form.type, trits.shape), UsageError))

    return Codec(
        type=form.type,
        decode=decode,
        encode=encode,
        unpack=lambda raw, shape, rows: unpack(form, raw, shape, tile(shape), rows),
        codes=lambda raw, shape: kernel_codes(form, raw, shape, tile(shape)),
    )


def _read(form: TableFormat, flat: Raw, shape: tuple[int, int], tile: Tile, i: int) -> Trits:
    try:
        return form.read(flat[:-SCALE_TAIL], shape, tile, i)
    except ValueError as error:
        raise ModelFileError(
            f"{error} in rows {i * tile.bm} to {(i + 1) * tile.bm - 1} of a {form.type.name} matrix of "
            f"{shape[0]} × {shape[1]}, read with tile bm {tile.bm}, bk {tile.bk}, bmm {tile.bmm}",
            remedy="the file was packed with other tile sizes (give its kernel_config.ini), or is damaged",
        ) from None
