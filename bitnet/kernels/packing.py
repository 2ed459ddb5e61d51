"""Codes in I2_S order to tiles and back: bit shuffles on whole words, so that a model of 2e9 weights takes a second.

In I2_S order, a word of four bytes holds four times four consecutive columns, 32 columns apart, in its four planes of
two bits; in a tile of two bits, a lane holds sixteen consecutive columns. Four words to four lanes is a transposition
of planes, which is its own inverse.
"""

from __future__ import annotations

import numpy as np

from bitnet.kernels.arrays import part
from bitnet.kernels.compile import device, kernel

_LOW = np.uint32(0x03030303)
_ONES = np.uint32(0x01010101)  # four zero weights
_FOUR_ZEROS = np.uint32(0x55555555)  # sixteen of them


@device
def _transposed(a, b, c, d):
    """Plane i of word j becomes plane j of word i."""
    two, four = np.uint32(2), np.uint32(4)
    t = ((a >> four) ^ c) & np.uint32(0x0F0F0F0F)
    a, c = a ^ (t << four), c ^ t
    t = ((b >> four) ^ d) & np.uint32(0x0F0F0F0F)
    b, d = b ^ (t << four), d ^ t
    t = ((a >> two) ^ b) & np.uint32(0x33333333)
    a, b = a ^ (t << two), b ^ t
    t = ((c >> two) ^ d) & np.uint32(0x33333333)
    return a, b, c ^ (t << two), d ^ t


@kernel
def pack_2bit(codes, begin, end, data):
    """Rows of tiles [begin, end) of data [row tiles, n_col / 16, 64]."""
    n_row = codes.shape[0]
    words = codes.view(np.uint32)
    lanes = data.reshape(data.shape[0], -1).view(np.uint32)
    z = _FOUR_ZEROS
    for tile_row in range(begin, end):
        for first in range(0, words.shape[1], 4):
            at = 16 * (8 * (first // 8) + first % 8 // 4)  # the tile of the highest plane; the next is two tiles on
            for r in range(16):
                row = 16 * tile_row + r
                a, b, c, d = z, z, z, z
                if row < n_row:
                    a, b, c, d = words[row, first], words[row, first + 1], words[row, first + 2], words[row, first + 3]
                a, b, c, d = _transposed(a, b, c, d)
                lanes[tile_row, at + r] = d
                lanes[tile_row, at + 32 + r] = c
                lanes[tile_row, at + 64 + r] = b
                lanes[tile_row, at + 96 + r] = a


@kernel
def unpack_2bit(data, begin, end, codes):
    """The inverse of `pack_2bit`, without the padding."""
    n_row = codes.shape[0]
    words = codes.view(np.uint32)
    lanes = data.reshape(data.shape[0], -1).view(np.uint32)
    for tile_row in range(begin, end):
        for first in range(0, words.shape[1], 4):
            at = 16 * (8 * (first // 8) + first % 8 // 4)
            for r in range(min(16, n_row - 16 * tile_row)):
                row = 16 * tile_row + r
                d, c = lanes[tile_row, at + r], lanes[tile_row, at + 32 + r]
                b, a = lanes[tile_row, at + 64 + r], lanes[tile_row, at + 96 + r]
                a, b, c, d = _transposed(a, b, c, d)
                words[row, first], words[row, first + 1], words[row, first + 2], words[row, first + 3] = a, b, c, d


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
    digits = np.zeros((5, 256), np.uint32)
    for byte in range(256):
        y = byte
        for s in range(5):
            digits[s, byte] = 3 * y // 256
            y = 3 * y % 256
    eight, sixteen, twenty_four = np.uint32(8), np.uint32(16), np.uint32(24)
    for tile_row in range(begin, end):
        for r in range(min(16, n_row - 16 * tile_row)):
            words = codes[16 * tile_row + r].view(np.uint32)
            words[:] = 0
            for tile in range(data.shape[1]):
                four_bytes = data[tile_row, tile, 4 * r : 4 * r + 4]
                i, j, k, m = four_bytes[0], four_bytes[1], four_bytes[2], four_bytes[3]
                for s in range(min(5, (n_col - 20 * tile) // 4)):
                    low = digits[s, i] | (digits[s, j] << eight)
                    four = low | (digits[s, k] << sixteen) | (digits[s, m] << twenty_four)
                    block, within = divmod(20 * tile + 4 * s, 128)
                    plane, byte = divmod(within, 32)
                    words[8 * block + byte // 4] |= four << np.uint32(6 - 2 * plane)


@device
def _columns_of(codes, n_row, n_byte, first_row, first_column, digits):
    """Digits [384, 32] of 384 columns × 32 rows, in the order of a tile's bytes; 1 beyond the matrix; both flat."""
    for group in range(3):
        for byte in range(32):
            at = 32 * (first_column // 128 + group) + byte
            found = part(digits, 32 * (128 * group + byte), 32 * 97)
            for r in range(32):
                row, to = first_row + r, 16 * (r // 4 % 2) + 4 * (r // 8) + r % 4
                inside = row < n_row and at < n_byte
                found[to] = codes[row * n_byte + at] if inside else np.uint8(0x55)
            for to in range(32):
                code = found[to]
                found[to] = code >> np.uint8(6)
                found[32 * 32 + to] = (code >> np.uint8(4)) & np.uint8(3)
                found[32 * 64 + to] = (code >> np.uint8(2)) & np.uint8(3)
                found[32 * 96 + to] = code & np.uint8(3)


@kernel
def pack_triples(codes, begin, end, data):
    """Rows of tiles [begin, end) of data [row tiles, ceil(n_col / 24), 160]."""
    digits = np.empty(384 * 32, np.uint8)
    n_row, n_byte, n_tile, n = codes.shape[0], codes.shape[1], data.shape[1], data.shape[2]
    flat_codes, flat = codes.reshape(-1), data.reshape(-1)
    for tile_row in range(begin, end):
        for first in range(0, n_tile, 16):
            _columns_of(flat_codes, n_row, n_byte, 32 * tile_row, 24 * first, digits)
            for tile in range(min(16, n_tile - first)):
                to = (tile_row * n_tile + first + tile) * n
                for i in range(n):
                    flat[to + i] = 0
                signs = part(flat, to + 128, 32)
                for at in range(8):
                    column = 32 * (24 * tile + 3 * at)
                    a, b, c = part(digits, column, 32), part(digits, column + 32, 32), part(digits, column + 64, 32)
                    entries = part(flat, to + 32 * (at // 2), 32)
                    shift, bit = np.uint8(4 * (at % 2)), np.uint8(7 - at)
                    for i in range(32):
                        v = np.int8(a[i] + np.uint8(3) * b[i] + np.uint8(9) * c[i]) - np.int8(13)
                        entries[i] |= np.uint8(abs(v)) << shift
                        signs[i] |= np.uint8(v < 0) << bit


@kernel
def unpack_triples(data, begin, end, codes):
    """The inverse of `pack_triples`, without the padding."""
    n_row, n_col = codes.shape[0], codes.shape[1] * 4
    for tile_row in range(begin, end):
        for r in range(min(32, n_row - 32 * tile_row)):
            row, byte = codes[32 * tile_row + r], 16 * (r // 4 % 2) + 4 * (r // 8) + r % 4
            row[:] = 0
            for tile in range(data.shape[1]):
                packed = data[tile_row, tile]
                for at in range(8):
                    v = (np.int32(packed[32 * (at // 2) + byte]) >> (4 * (at % 2))) & 15
                    v = 13 - v if (packed[128 + byte] >> (7 - at)) & 1 else 13 + v
                    for column in range(24 * tile + 3 * at, min(24 * tile + 3 * at + 3, n_col)):
                        block, within = divmod(column, 128)
                        plane, where = divmod(within, 32)
                        row[32 * block + where] |= np.uint8(v % 3 << (6 - 2 * plane))
                        v //= 3
