"""Tiles of 16 rows: every weight where the layout says, padding that weighs nothing, and back again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet.codecs.i2_s import trits_to_codes
from bitnet.kernels.row_tiles import Arena, Tiles, pack, unpack
from bitnet.kernels.variants import TILES

LAYOUTS = tuple(TILES)


def random_trits(seed, n_row, n_col):
    return np.random.default_rng(seed).integers(-1, 2, (n_row, n_col), np.int8)


def triple(tile, row, j):
    """The three trits of one lookup, read by the definition."""
    byte = 16 * (row // 4 % 2) + 4 * (row // 8) + row % 4
    magnitude = int(tile[32 * (j // 2) + byte]) >> 4 * (j % 2) & 15
    v = -magnitude if int(tile[128 + byte]) >> 7 - j & 1 else magnitude
    return [(v + 13) // 3**place % 3 - 1 for place in range(3)]


def trits_of(tiles: Tiles):
    """Every weight with its padding, [rows of all tiles, width], read by the definition."""
    n_tile_row, n_tile, _ = tiles.data.shape
    shape = TILES[tiles.layout]
    out = np.empty((shape.rows * n_tile_row, n_tile * shape.columns), np.int64)
    for i, tile_row in enumerate(tiles.data.astype(np.int64)):
        for k, tile in enumerate(tile_row):
            for r in range(shape.rows):
                mine = out[shape.rows * i + r, shape.columns * k :]
                if tiles.layout == "triples":
                    for j in range(8):
                        mine[3 * j : 3 * j + 3] = triple(tile, r, j)
                    continue
                for j in range(4):
                    byte = tile[4 * r + j]
                    number = byte * 243 // 256  # of base-3, floored: ceil(v · 256 / 243) · 243 / 256 is v to v + 1
                    for s in range(shape.columns // 4):
                        digit = byte >> 2 * s & 3 if tiles.layout == "2-bit" else number // 3 ** (4 - s) % 3
                        mine[4 * s + j] = digit - 1
    return out


@pytest.mark.parametrize("layout", LAYOUTS)
@given(seed=st.integers(0, 2**32), n_row=st.integers(1, 70), groups=st.integers(1, 4), n_threads=st.integers(1, 4))
@settings(max_examples=20)
def test_weights_are_where_the_layout_says_and_come_back(layout, seed, n_row, groups, n_threads):
    trits = random_trits(seed, n_row, 128 * groups)
    codes = trits_to_codes(trits)
    tiles = pack(codes, layout, n_threads=n_threads)
    assert (tiles.n_row, tiles.n_col, tiles.layout) == (n_row, 128 * groups, layout)
    assert tiles.data.ctypes.data % 64 == 0
    found = trits_of(tiles)
    rows = TILES[layout].rows
    assert found.shape == (-(-n_row // rows) * rows, tiles.width)
    assert np.array_equal(found[:n_row, : 128 * groups], trits)
    assert not found[n_row:].any()
    assert not found[:, 128 * groups :].any()
    assert np.array_equal(unpack(tiles, n_threads=n_threads), codes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_changed_byte_is_seen(layout):
    codes = trits_to_codes(random_trits(1, 40, 256))
    tiles = pack(codes, layout)
    tiles.data[1, 3, 1] ^= 0x80 if layout == "base-3" else 1
    assert not np.array_equal(unpack(tiles), codes)


def test_every_number_of_five_digits_is_read_from_its_byte():
    for v in range(243):
        y = (256 * v + 242) // 243
        assert y <= 255
        for s in range(5):
            following = 3 * y % 256
            assert (3 * y - following) // 256 == v // 3 ** (4 - s) % 3
            y = following


def test_codes_of_a_mapped_file_are_packed_as_any_other():
    codes = trits_to_codes(random_trits(2, 17, 128))
    frozen = codes.copy()
    frozen.flags.writeable = False
    assert np.array_equal(pack(frozen).data, pack(codes).data)


def test_memory_begins_at_a_cache_line_and_is_nobody_elses():
    arena = Arena()
    taken = [
        arena.take(shape) for shape in ((1,), (3, 5), (16, 7, 64), (1 << 25,), (1 << 24,), (1 << 24,), (60 << 20,))
    ]
    for i, array in enumerate(taken):
        assert array.ctypes.data % 64 == 0
        array[...] = i
    assert all((array == i).all() for i, array in enumerate(taken))
