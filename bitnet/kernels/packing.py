"""Codes in I2_S order to tiles and back: bit shuffles on whole words, so that a model of 2e9 weights takes a second.

Two bits a weight: in I2_S order, four consecutive bytes hold four consecutive columns in each of four planes, 32
columns apart. So a 32-bit word of codes gives one word of digits (bits 1-0 of each byte) to each of four tiles, and a
lane of a tile is four such words, shifted to their place.
"""

from __future__ import annotations

import numpy as np

from bitnet.kernels.compile import device, kernel

_LOW = np.uint32(0x03030303)
_ONES = np.uint32(0x01010101)  # four zero weights
_FOUR_ZEROS = np.uint32(0x55555555)  # sixteen of them


@device
def _words(codes, row, block, n_row):
    """The eight words of 128 columns of one row; of zero weights where the row is padding."""
    if row < n_row:
        flat = codes[row, 32 * block : 32 * block + 32].view(np.uint32)
        return (flat[0], flat[1], flat[2], flat[3], flat[4], flat[5], flat[6], flat[7])
    z = _FOUR_ZEROS
    return (z, z, z, z, z, z, z, z)


@kernel
def pack_2bit(codes, begin, end, data):
    """Rows of tiles [begin, end) of data [row tiles, n_col / 16, 64]."""
    n_row = codes.shape[0]
    lanes = data.reshape(data.shape[0], -1).view(np.uint32)
    for tile_row in range(begin, end):
        for block in range(codes.shape[1] // 32):
            for r in range(16):
                words = _words(codes, 16 * tile_row + r, block, n_row)
                for tile in range(8):
                    plane = np.uint32(6 - 2 * (tile // 2))
                    first = 4 * (tile % 2)
                    lane = (words[first] >> plane) & _LOW
                    lane |= ((words[first + 1] >> plane) & _LOW) << np.uint32(2)
                    lane |= ((words[first + 2] >> plane) & _LOW) << np.uint32(4)
                    lane |= ((words[first + 3] >> plane) & _LOW) << np.uint32(6)
                    lanes[tile_row, (8 * block + tile) * 16 + r] = lane


@kernel
def unpack_2bit(data, begin, end, codes):
    """The inverse of `pack_2bit`, without the padding."""
    n_row = codes.shape[0]
    lanes = data.reshape(data.shape[0], -1).view(np.uint32)
    for tile_row in range(begin, end):
        for r in range(min(16, n_row - 16 * tile_row)):
            words = codes[16 * tile_row + r].view(np.uint32)
            words[:] = 0
            for tile in range(data.shape[1]):
                lane = lanes[tile_row, tile * 16 + r]
                plane = np.uint32(6 - 2 * (tile % 8 // 2))
                first = tile // 8 * 8 + 4 * (tile % 2)
                for s in range(4):
                    words[first + s] |= ((lane >> np.uint32(2 * s)) & _LOW) << plane


@device
def _four(words, column, n_col):
    """The digits of columns [column, column + 4) of a row, one a byte."""
    if column >= n_col:
        return _ONES
    block, within = divmod(column, 128)
    plane, byte = divmod(within, 32)
    return (words[8 * block + byte // 4] >> np.uint32(6 - 2 * plane)) & _LOW


@kernel
def pack_base3(codes, begin, end, data):
    """Rows of tiles [begin, end) of data [row tiles, ceil(n_col / 20), 64]."""
    n_row, n_col = codes.shape[0], codes.shape[1] * 4
    table = np.empty(243, np.uint8)
    for v in range(243):
        table[v] = (256 * v + 242) // 243
    words = np.empty(codes.shape[1] // 4, np.uint32)
    for tile_row in range(begin, end):
        for r in range(16):
            row = 16 * tile_row + r
            words[:] = _FOUR_ZEROS
            if row < n_row:
                words[:] = codes[row].view(np.uint32)
            for tile in range(data.shape[1]):
                number = np.uint64(0)  # four numbers below 243, 16 bits apart
                for s in range(5):
                    four = np.uint64(_four(words, 20 * tile + 4 * s, n_col))
                    even = four & np.uint64(0x00FF00FF)
                    odd = (four >> np.uint64(8)) & np.uint64(0x00FF00FF)
                    number = np.uint64(3) * number + (even | odd << np.uint64(32))
                data[tile_row, tile, 4 * r] = table[number & np.uint64(255)]
                data[tile_row, tile, 4 * r + 1] = table[(number >> np.uint64(32)) & np.uint64(255)]
                data[tile_row, tile, 4 * r + 2] = table[(number >> np.uint64(16)) & np.uint64(255)]
                data[tile_row, tile, 4 * r + 3] = table[(number >> np.uint64(48)) & np.uint64(255)]


@kernel
def unpack_base3(data, begin, end, codes):
    """The inverse of `pack_base3`, without the padding."""
    n_row, n_col = codes.shape[0], codes.shape[1] * 4
    for tile_row in range(begin, end):
        for r in range(min(16, n_row - 16 * tile_row)):
            row = 16 * tile_row + r
            codes[row] = 0
            for tile in range(data.shape[1]):
                for j in range(4):
                    y = np.int64(data[tile_row, tile, 4 * r + j])
                    for s in range(5):
                        column = 20 * tile + 4 * s + j
                        if column < n_col:
                            block, within = divmod(column, 128)
                            digit = np.uint8(3 * y // 256)
                            codes[row, 32 * block + within % 32] |= digit << np.uint8(6 - 2 * (within // 32))
                        y = 3 * y % 256
