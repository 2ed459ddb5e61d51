"""Ternary weights as the kernels read them: tiles of 64 bytes, 16 rows × 16 or 20 columns, in one sequential stream.

A tile is sixteen 32-bit lanes, one a row; byte j of a lane holds columns j, j + 4, j + 8, … of the tile, so that four
consecutive activations, broadcast to every lane, meet four consecutive weights of every row:

- `2-bit`: 16 columns. Digit s of a byte is bits 2s and 2s + 1: column 4s + j.
- `base-3`: 20 columns. The five digits of a byte, most significant first, are columns j, 4 + j, …, 16 + j. Not their
  number v < 243 is stored but y(0) = ceil(v · 256 / 243): with y(s+1) = 3·y(s) mod 256, digit s is the carry
  (3·y(s) − y(s+1)) / 256. For y(s) / 256 = f(s) + e·3^s, where f(s) is the fraction of 3^s·v/243 and 0 ≤ e < 1/256;
  f(s) is a multiple of 3^s/243 below 1, so it is at most 1 − 3^s/243, and the error e·3^s < 3^s/256 never carries.

The third layout, `rows`, is that of the file: codes in I2_S order, which are not copied; numpy's kernels read it.

Digits are 0, 1, 2 for −1, 0, +1: kernels multiply digits and take off the sum of the activations. Rows are padded to
16 and columns to whole tiles with zero weights (digit 1); padded activations are zero.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.kernels.variants import TILE_COLUMNS, Layout

#: Rows of a tile, and its bytes.
ROWS = 16
TILE_BYTES = 64

Codes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """A packed matrix.

    Attributes:
        data: [row tiles, column tiles, 64] uint8, aligned to 64 bytes; codes [n_row, n_col / 4] of `rows`.
        n_row: Rows that are not padding.
        n_col: Columns that are not padding, a multiple of 128.
        layout: How a byte holds its weights.
    """

    data: Codes
    n_row: int
    n_col: int
    layout: Layout

    @property
    def width(self) -> int:
        """Columns with the padding: what activations are padded to."""
        if self.layout == "rows":
            return self.n_col
        return int(self.data.shape[1]) * TILE_COLUMNS[self.layout]


def aligned(shape: tuple[int, ...], alignment: int = TILE_BYTES) -> Codes:
    """An uninitialised uint8 array that begins at a multiple of `alignment`."""
    size = int(np.prod(shape, dtype=np.int64))
    store = np.empty(size + alignment, np.uint8)
    start = -store.ctypes.data % alignment
    return store[start : start + size].reshape(shape)


def as_rows(codes: Codes) -> Tiles:
    """Codes [n_row, n_col / 4] in I2_S order, as they are."""
    return Tiles(data=codes, n_row=codes.shape[0], n_col=codes.shape[1] * 4, layout="rows")


def pack(codes: Codes, layout: Layout = "2-bit", *, n_threads: int = 1) -> Tiles:
    """Tiles of codes [n_row, n_col / 4] in I2_S order (0, 1, 2; not checked).

    Args:
        codes: Byte b of 32 holds columns b, b + 32, b + 64, b + 96 of 128 in bits 7-6, 5-4, 3-2, 1-0.
        layout: Of the result.
        n_threads: Threads that share the rows.
    """
    if layout == "rows":
        return as_rows(codes)
    from bitnet.kernels import packing

    codes = np.ascontiguousarray(codes)
    n_row, n_col = codes.shape[0], codes.shape[1] * 4
    data = aligned((-(-n_row // ROWS), -(-n_col // TILE_COLUMNS[layout]), TILE_BYTES))
    kernel = packing.pack_2bit if layout == "2-bit" else packing.pack_base3
    _split(data.shape[0], n_threads, lambda begin, end: kernel(codes, begin, end, data))
    return Tiles(data=data, n_row=n_row, n_col=n_col, layout=layout)


def unpack(tiles: Tiles, *, n_threads: int = 1) -> Codes:
    """The codes that `pack` was given, [n_row, n_col / 4] in I2_S order; of `rows` the same array."""
    if tiles.layout == "rows":
        return tiles.data
    from bitnet.kernels import packing

    codes = np.empty((tiles.n_row, tiles.n_col // 4), np.uint8)
    kernel = packing.unpack_2bit if tiles.layout == "2-bit" else packing.unpack_base3
    _split(tiles.data.shape[0], n_threads, lambda begin, end: kernel(tiles.data, begin, end, codes))
    return codes


def _split(n: int, n_threads: int, run: Callable[[int, int], Any]) -> None:
    """Call `run(begin, end)` over [0, n), one share a thread."""
    shares = max(1, min(n_threads, n))
    if shares == 1:
        run(0, n)
        return
    borders = [n * i // shares for i in range(shares + 1)]
    with ThreadPoolExecutor(shares) as pool:
        for done in [pool.submit(run, a, b) for a, b in pairwise(borders)]:
            done.result()
