"""Ternary matrix × activations over tiles, one loop for one token and for many, in every variant.

A tile is read once and multiplied by the activations of up to eight tokens. Work is split by rows of tiles (16 rows);
sums are exact integers, so neither the split, nor the number of tokens, nor the variant shows in a result.

Device functions take and give what other kernels can inline; the kernels below them are what `linear.py` calls:

    v             variant (`variants.Variant`)
    tiles         [row tiles, column tiles, 64] uint8
    q             [n_token, columns of all tiles] int8, padded with zeros
    total         [n_token] int32, the sum of a token's codes ([n_token, blocks] for blocks of 256)
    begin, end    row tiles
    out           [n_token, n_row]
"""

from __future__ import annotations

import numpy as np

from bitnet.kernels import dot, simd
from bitnet.kernels.compile import device, kernel

_f32 = np.float32

#: Bytes of weights that are fetched ahead.
AHEAD = 4096
#: Bytes of activations that are used for all rows before the next tokens' are: they stay in a second-level cache.
_RESIDENT = 1 << 17
#: The most tokens that share one reading of a tile.
BLOCK = 8


@device
def _accumulate(v, sums, tiles, at, n_tile, q, at_q, stride):
    """`sums` plus the products of `n_tile` tiles, the first at `tiles[at]`."""
    group, columns = dot.group(v), dot.columns(v)
    for first in range(0, n_tile, group):
        partial = dot.start(v, sums)
        for tile in range(first, min(first + group, n_tile)):
            dot.prefetch(tiles, at + 64 * tile + AHEAD)
            partial = dot.add(partial, tiles, at + 64 * tile, q, at_q + columns * tile, stride)
        sums = dot.flush(partial, sums)
    return sums


@device
def _tile_rows(v, zero, tiles, at, n_tile, q, at_q, stride, sums):
    """Sums of the 16 rows of a row tile for the tokens of `zero`, to `sums[16 · t + row]`."""
    for row in range(0, 16, dot.rows(zero)):
        found = _accumulate(v, zero, tiles, at + 4 * row, n_tile, q, at_q, stride)
        dot.store(found, sums, row)


@device
def row_tile_sums(v, tiles, at, n_tile, q, at_q, stride, n_token, sums):
    """Sums of digits × codes of one row tile for the next few of `n_token` tokens; how many they were.

    tiles and q are flat; the first of `n_tile` tiles begins at `tiles[at]`, the first token's activations at `q[at_q]`,
    the next token's `stride` further. Token t's 16 rows go to `sums[16 · t :]`, int32 [128].
    """
    if n_token >= dot.tokens(dot.block(v)):
        _tile_rows(v, dot.block(v), tiles, at, n_tile, q, at_q, stride, sums)
        return dot.tokens(dot.block(v))
    if n_token >= dot.tokens(dot.few(v)):
        _tile_rows(v, dot.few(v), tiles, at, n_tile, q, at_q, stride, sums)
        return dot.tokens(dot.few(v))
    _tile_rows(v, dot.one(v), tiles, at, n_tile, q, at_q, stride, sums)
    return 1


@device
def resident_tokens(n_col):
    """Tokens whose activations are used for all rows before the next ones'."""
    return max(BLOCK, _RESIDENT // n_col // BLOCK * BLOCK)


@device
def scaled(sums, total, scale, tensor_scale, row, out):
    """The results of one token and one row tile: (sum − total) ÷ the token's scale × the tensor's, to out[row:]."""
    n = min(16, out.size - row)
    if n == 16:
        for r in range(16):
            out[row + r] = _f32(_f32(sums[r] - total) / scale) * tensor_scale
    else:
        for r in range(n):
            out[row + r] = _f32(_f32(sums[r] - total) / scale) * tensor_scale


@device
def matvec(v, tiles, q, total, scale, tensor_scale, begin, end, sums, out):
    """One token: q [columns], out [n_row], sums [16] scratch; the rest as `ternary_int8_token`."""
    n_tile = tiles.shape[1]
    flat = tiles.reshape(-1)
    for tile_row in range(begin, end):
        _tile_rows(v, dot.one(v), flat, tile_row * n_tile * 64, n_tile, q, 0, 0, sums)
        scaled(sums, total, scale, tensor_scale, 16 * tile_row, out)


@device
def matmul(v, tiles, q, total, scale, tensor_scale, begin, end, sums, out):
    """Any number of tokens; sums [128] scratch."""
    n_token, stride = q.shape
    n_tile = tiles.shape[1]
    flat, flat_q = tiles.reshape(-1), q.reshape(-1)
    step = resident_tokens(stride)
    for first in range(0, n_token, step):
        last = min(first + step, n_token)
        for tile_row in range(begin, end):
            t = first
            while t < last:
                at = tile_row * n_tile * 64
                n = row_tile_sums(v, flat, at, n_tile, flat_q, t * stride, stride, last - t, sums)
                for i in range(n):
                    scaled(sums[16 * i :], total[t + i], scale[t + i], tensor_scale, 16 * tile_row, out[t + i])
                t += n


@kernel
def ternary_int8_token(v, tiles, q, total, scale, tensor_scale, begin, end, out):
    """Exact integer sums of trits and int8, then ÷ the token's scale, × the tensor's."""
    sums = np.empty(16 * BLOCK, np.int32)
    if q.shape[0] == 1:
        matvec(v, tiles, q[0], total[0], scale[0], tensor_scale, begin, end, sums, out[0])
    else:
        matmul(v, tiles, q, total, scale, tensor_scale, begin, end, sums, out)


@kernel
def ternary_sums(v, tiles, q, total, begin, end, out):
    """The integer sums alone, int32 (for the comparison of integers)."""
    n_token, stride = q.shape
    n_tile, n_row = tiles.shape[1], out.shape[1]
    flat, flat_q = tiles.reshape(-1), q.reshape(-1)
    sums = np.empty(16 * BLOCK, np.int32)
    for tile_row in range(begin, end):
        t = 0
        while t < n_token:
            at = tile_row * n_tile * 64
            n = row_tile_sums(v, flat, at, n_tile, flat_q, t * stride, stride, n_token - t, sums)
            for i in range(n):
                for row in range(16 * tile_row, min(16 * tile_row + 16, n_row)):
                    out[t + i, row] = sums[16 * i + row % 16] - total[t + i]
            t += n


@kernel
def ternary_blocks(v, tiles, block_scale, q, total, scale, tensor_scale, begin, end, out):
    """Blocks of 256: exact integer sums a block, weighted by both block scales, added in float64, × tensor scale.

    A block is sixteen tiles of two bits; block_scale, scale and total are [n_row or n_token, n_col / 256].
    """
    n_token, stride = q.shape
    n_tile, n_row = tiles.shape[1], out.shape[1]
    flat, flat_q = tiles.reshape(-1), q.reshape(-1)
    sums = np.empty(16 * BLOCK, np.int32)
    y = np.empty(16 * BLOCK, np.float64)
    for tile_row in range(begin, end):
        rows = min(16, n_row - 16 * tile_row)
        t, n = 0, 0
        while t < n_token:
            y[:] = 0.0
            for b in range(n_tile // 16):
                at = (tile_row * n_tile + 16 * b) * 64
                n = row_tile_sums(v, flat, at, 16, flat_q, t * stride + 256 * b, stride, n_token - t, sums)
                for i in range(n):
                    for r in range(rows):
                        weight = np.float64(block_scale[16 * tile_row + r, b]) * np.float64(scale[t + i, b])
                        y[16 * i + r] += weight * np.float64(sums[16 * i + r] - total[t + i, b])
            for i in range(n):
                for r in range(rows):
                    out[t + i, 16 * tile_row + r] = _f32(y[16 * i + r]) * tensor_scale
            t += n


@device
def _digit(v, tiles, row, column):
    """The digit of one weight, of tiles [row tiles, n_tile, 64]."""
    tile, within = divmod(column, dot.columns(v))
    byte = np.int32(tiles[row // 16, tile, 4 * (row % 16) + within % 4])
    if dot.columns(v) == 16:
        return (byte >> (2 * (within // 4))) & 3
    for _ in range(within // 4):
        byte = 3 * byte % 256
    return 3 * byte // 256


@kernel
def ternary_float(v, tiles, block_scale, x, tensor_scale, begin, end, out):
    """Trits · float activations: a row is unpacked once and used for every token; block_scale [n_row, n_col / 256]."""
    n, n_row = x.shape[1], out.shape[1]
    flat_x = x.reshape(-1)
    weight = np.empty(n, np.float32)
    for r in range(16 * begin, min(16 * end, n_row)):
        for i in range(n):
            weight[i] = _f32(_digit(v, tiles, r, i) - 1) * block_scale[r, i // 256]
        for t in range(x.shape[0]):
            acc = simd.zero_f32()
            for i in range(0, n, 16):
                acc = simd.fma_f32(simd.load(weight, i), simd.load(flat_x, t * n + i), acc)
            out[t, r] = simd.sum_f32(acc) * tensor_scale
