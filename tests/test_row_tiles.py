"""Tiles of 16 rows: every weight where the layout says, padding that weighs nothing, and back again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet.codecs.i2_s import trits_to_codes
from bitnet.kernels.row_tiles import Tiles, aligned, pack, unpack
from bitnet.kernels.variants import TILE_COLUMNS

LAYOUTS = tuple(TILE_COLUMNS)


def random_trits(seed, n_row, n_col):
    return np.random.default_rng(seed).integers(-1, 2, (n_row, n_col), np.int8)


def trits_of(tiles: Tiles):
    """Every weight with its padding, [16 · row tiles, width], read by the definition."""
    n_tile_row, n_tile, _ = tiles.data.shape
    planes = TILE_COLUMNS[tiles.layout] // 4
    out = np.empty((16 * n_tile_row, n_tile * 4 * planes), np.int64)
    for i, tile_row in enumerate(tiles.data.astype(np.int64)):
        for k, tile in enumerate(tile_row):
            for r in range(16):
                for j in range(4):
                    byte = tile[4 * r + j]
                    number = byte * 243 // 256  # of base-3, floored: ceil(v · 256 / 243) · 243 / 256 is v to v + 1
                    for s in range(planes):
                        digit = byte >> 2 * s & 3 if tiles.layout == "2-bit" else number // 3 ** (4 - s) % 3
                        out[16 * i + r, 4 * planes * k + 4 * s + j] = digit - 1
    return out


@pytest.mark.parametrize("layout", LAYOUTS)
@given(seed=st.integers(0, 2**32), n_row=st.integers(1, 40), groups=st.integers(1, 3), n_threads=st.integers(1, 4))
@settings(max_examples=20)
def test_weights_are_where_the_layout_says_and_come_back(layout, seed, n_row, groups, n_threads):
    trits = random_trits(seed, n_row, 128 * groups)
    codes = trits_to_codes(trits)
    tiles = pack(codes, layout, n_threads=n_threads)
    assert (tiles.n_row, tiles.n_col, tiles.layout) == (n_row, 128 * groups, layout)
    assert tiles.data.ctypes.data % 64 == 0
    found = trits_of(tiles)
    assert found.shape == (-(-n_row // 16) * 16, tiles.width)
    assert np.array_equal(found[:n_row, : 128 * groups], trits)
    assert not found[n_row:].any()
    assert not found[:, 128 * groups :].any()
    assert np.array_equal(unpack(tiles, n_threads=n_threads), codes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_changed_byte_is_seen(layout):
    codes = trits_to_codes(random_trits(1, 32, 256))
    tiles = pack(codes, layout)
    tiles.data[1, 3, 17] ^= 1 if layout == "2-bit" else 0x80
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


def test_memory_begins_at_a_cache_line():
    for shape in ((1,), (3, 5), (16, 7, 64)):
        assert aligned(shape).shape == shape
        assert aligned(shape).ctypes.data % 64 == 0
