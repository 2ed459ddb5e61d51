"""Ternary matrix × activations over tiles, one loop for one token and for many, in every variant.

Up to seven tokens are multiplied with tiles as they are packed, one, two or more at a time; for more, a row of tiles is
unpacked to bytes first, which all of them share, or tables are made of their activations (`by_tokens.py`). Work is
split by rows of tiles and blocks of tokens; sums are exact integers, so neither the split, nor the number of tokens,
nor the variant shows in a result.

Device functions take and give what other kernels can inline; the kernels below them are what `linear.py` calls:

    v             variant (`variants.Variant`)
    tiles         [row tiles, column tiles, bytes of a tile] uint8
    q             [n_token, columns of all tiles] int8, padded with zeros
    inputs        what `prepare` makes of q, of at least `inputs_shape` int8: for a variant that looks products up the
                  tables of a few tokens, [n_token, at least column tiles × table bytes], or the turned codes of many;
                  else q itself
    total         [n_token] int32, the sum of a token's codes ([n_token, blocks] for blocks of 256)
    begin, end    row tiles
    digits, sums  scratch, int8 [DIGITS] and int32 [`n_sums`]
    out           [n_token, n_row]
"""

from __future__ import annotations

import numpy as np

from bitnet.kernels import by_tokens, dot, simd
from bitnet.kernels.arrays import part
from bitnet.kernels.compile import device, inlined, kernel

_f32 = np.float32

#: Bytes of weights that are fetched ahead.
AHEAD = 4096
#: The most tokens that are multiplied with tiles as they are packed.
DIRECT = 7
#: The most tokens that share one unpacking: their activations and sums stay in a second-level cache.
TOGETHER = by_tokens.BLOCK
#: Columns that are unpacked at once, a multiple of every tile's: 16 rows of them stay in a first-level cache.
_COLUMNS = 960
#: Elements of the scratch arrays, the second for tokens that are not turned.
DIGITS, SUMS = 32 * _COLUMNS, 32 * TOGETHER


@inlined
def _fetch_ahead(v, tiles, at):
    for line in range(0, dot.tile_bytes(v), 64):
        dot.prefetch(tiles, at + AHEAD + line)


@inlined
def _flush(v, partial, zero, sums, at):
    """Adds accumulators to sums in memory: in registers they would push out what the inner loop needs."""
    found = dot.flush(partial, dot.restore(zero, sums, at, dot.tile_rows(v)))
    dot.store(found, sums, at, dot.tile_rows(v))


@device
def _packed_rows(v, zero, tiles, at, n_tile, inputs, at_input, stride, sums, to):
    """Sums of the rows of a row tile for the tokens of `zero`, to `sums[to + tile rows · t + row]`."""
    group, step = dot.group(v, zero), dot.tile_bytes(v)
    width = dot.table_bytes(v) or dot.columns(v)
    for row in range(0, dot.tile_rows(v), dot.rows(zero)):
        dot.store(zero, sums, to + row, dot.tile_rows(v))
        for first in range(0, n_tile, group):
            partial = dot.start(v, zero)
            for tile in range(first, min(first + group, n_tile)):
                here = at + step * tile
                _fetch_ahead(v, tiles, here)
                partial = dot.add(partial, tiles, here + 4 * row, inputs, at_input + width * tile, stride)
            _flush(v, partial, zero, sums, to + row)


@device
def _packed_sums(v, tiles, at, n_tile, inputs, at_input, stride, n_token, sums):
    t = 0
    while t < n_token:
        here, to = at_input + stride * t, dot.tile_rows(v) * t
        if n_token - t >= dot.tokens(dot.block(v)):
            _packed_rows(v, dot.block(v), tiles, at, n_tile, inputs, here, stride, sums, to)
            t += dot.tokens(dot.block(v))
        elif n_token - t >= dot.tokens(dot.few(v)):
            _packed_rows(v, dot.few(v), tiles, at, n_tile, inputs, here, stride, sums, to)
            t += dot.tokens(dot.few(v))
        else:
            _packed_rows(v, dot.one(v), tiles, at, n_tile, inputs, here, stride, sums, to)
            t += 1


@device
def _unpacked_rows(v, zero, digits, at, n_tile, q, at_q, stride, sums, to):
    """Adds the sums of 16 unpacked rows for the tokens of `zero` to `sums[to + tile rows · t + row]`."""
    group, columns = dot.group(v, zero), dot.columns(v)
    for row in range(0, 16, dot.rows(zero)):
        for first in range(0, n_tile, group):
            partial = dot.start(v, zero)
            for tile in range(first, min(first + group, n_tile)):
                here = at + 16 * columns * tile + 4 * row
                partial = dot.add(partial, digits, here, q, at_q + columns * tile, stride)
            _flush(v, partial, zero, sums, to + row)


@device
def _unpacked_sums(v, tiles, at, n_tile, q, at_q, stride, n_token, digits, sums):
    n_row, columns = dot.tile_rows(v), dot.columns(v)
    chunk = _COLUMNS // columns
    for i in range(n_row * n_token):
        sums[i] = 0
    for first in range(0, n_tile, chunk):
        n = min(chunk, n_tile - first)
        for tile in range(n):
            here = at + dot.tile_bytes(v) * (first + tile)
            _fetch_ahead(v, tiles, here)
            dot.unpack(v, tiles, here, digits, 16 * columns * tile, 16 * _COLUMNS)
        for row in range(0, n_row, 16):
            t = 0
            while t < n_token:
                here, to = at_q + stride * t + columns * first, n_row * t + row
                if n_token - t >= dot.tokens(dot.unpacked_block(v)):
                    _unpacked_rows(v, dot.unpacked_block(v), digits, _COLUMNS * row, n, q, here, stride, sums, to)
                    t += dot.tokens(dot.unpacked_block(v))
                elif n_token - t >= dot.tokens(dot.unpacked_few(v)):
                    _unpacked_rows(v, dot.unpacked_few(v), digits, _COLUMNS * row, n, q, here, stride, sums, to)
                    t += dot.tokens(dot.unpacked_few(v))
                else:
                    _unpacked_rows(v, dot.unpacked_one(v), digits, _COLUMNS * row, n, q, here, stride, sums, to)
                    t += 1


@inlined
def row_tile_sums(v, tiles, at, n_tile, q, at_q, stride, inputs, at_input, input_stride, n_token, direct, digits, sums):
    """Sums of one row tile for up to `TOGETHER` tokens, to `sums[tile rows · t + row]`; how much digits exceed trits.

    tiles, q and inputs are flat: the first of `n_tile` tiles begins at `tiles[at]`, the first token's activations at
    `q[at_q]`, the next token's `stride` further, and so on. Tiles are used as they are packed if `direct`.
    """
    if direct:
        _packed_sums(v, tiles, at, n_tile, inputs, at_input, input_stride, n_token, sums)
        return dot.bias(v, dot.one(v))
    _unpacked_sums(v, tiles, at, n_tile, q, at_q, stride, n_token, digits, sums)
    return dot.bias(v, dot.unpacked_one(v))


@inlined
def is_direct(n_token):
    """Whether so many tokens are multiplied with tiles as they are packed."""
    return n_token <= DIRECT


@inlined
def is_turned(v, n_token):
    """Whether there is a block of tokens that are done by tables of tokens."""
    return by_tokens.suits(v) and n_token > by_tokens.ENOUGH


@inlined
def n_blocks(n_token):
    """Blocks of `TOGETHER` tokens, the last of which may be smaller."""
    return (n_token + TOGETHER - 1) // TOGETHER


@inlined
def n_sums(v, n_token):
    """Elements of the second scratch array."""
    return by_tokens.SUMS if is_turned(v, n_token) else SUMS


@inlined
def inputs_shape(v, n_token, n_tile):
    """Rows and columns of what `prepare` writes; 0 columns where q itself is read."""
    if is_direct(n_token):
        return n_token, dot.table_bytes(v) * n_tile
    if is_turned(v, n_token):
        return TOGETHER * n_blocks(n_token), dot.columns(v) * n_tile
    return n_token, 0


@device
def fill_tables(v, q, at, n_tile, tables, to):
    """The tables of one token: codes from `q[at]`, both flat; nothing where the variant reads none."""
    for tile in range(n_tile):
        dot.fill(v, q, at + dot.columns(v) * tile, tables, to + dot.table_bytes(v) * tile)


@device
def prepare(v, q, begin, end, n_token, n_tile, row, inputs, stride):
    """The inputs of tokens [begin, end) of n_token: codes from row `row` of q on; tables to the same rows of inputs.

    Both are flat; a row of q is as wide as its tiles, one of inputs is `stride` bytes.
    """
    if is_direct(n_token):
        if dot.table_bytes(v):
            for t in range(row, row + end - begin):
                fill_tables(v, q, t * n_tile * dot.columns(v), n_tile, inputs, t * stride)
    elif is_turned(v, n_token):
        by_tokens.turn(q, begin, end, n_tile, inputs)


@device
def _scaled(sums, at, total, scale, tensor_scale, out, to, n):
    """The first n results of one token and one row tile: (sum − total) ÷ the token's scale × the tensor's."""
    row, found = part(sums, at, n), part(out, to, n)
    for r in range(n):
        found[r] = _f32(_f32(np.int32(row[r] - total)) / scale) * tensor_scale


@device
def _row_tiles(
    v, tiles, n_tile, q, inputs, stride, total, scale, row, tensor_scale, begin, end, first, n_token, direct, digits,
    sums, out, n_out,
):  # fmt: skip
    """The products of some row tiles and up to `TOGETHER` tokens."""
    n_row, width = dot.tile_rows(v), n_tile * dot.columns(v)
    for tile_row in range(begin, end):
        at = tile_row * n_tile * dot.tile_bytes(v)
        bias = row_tile_sums(
            v, tiles, at, n_tile, q, (row + first) * width, width, inputs, (row + first) * stride, stride, n_token,
            direct, digits, sums,
        )  # fmt: skip
        rows = min(n_row, n_out - n_row * tile_row)
        for t in range(first, first + n_token):
            to, less = n_out * t + n_row * tile_row, np.int32(bias * total[row + t])
            _scaled(sums, n_row * (t - first), less, scale[row + t], tensor_scale, out, to, rows)


@device
def multiply(
    v, tiles, n_tile, n_token, q, inputs, stride, total, scale, row, tensor_scale, begin, end, block, digits, sums, out,
    n_out,
):  # fmt: skip
    """The products of one block of n_token tokens with some row tiles, as `ternary_int8_token`; arrays are flat.

    Tokens are rows `row` and on of q, total, scale and the tables, and 0 and on of out.
    """
    first = TOGETHER * block
    n = min(TOGETHER, n_token - first)
    if by_tokens.suits(v) and n > by_tokens.ENOUGH:
        by_tokens.multiply(
            v, tiles, n_tile, inputs, scale, tensor_scale, begin, end, first, n, digits, sums, out, n_out
        )
        return
    direct = is_direct(n_token)
    if not (direct and dot.table_bytes(v)):
        inputs, stride = q, n_tile * dot.columns(v)
    _row_tiles(
        v, tiles, n_tile, q, inputs, stride, total, scale, row, tensor_scale, begin, end, first, n, direct, digits,
        sums, out, n_out,
    )  # fmt: skip


@kernel
def ternary_int8_token(v, tiles, q, total, scale, tensor_scale, begin, end, out):
    """Exact integer sums of trits and int8, then ÷ the token's scale, × the tensor's."""
    n_token, n_tile = q.shape[0], tiles.shape[1]
    digits, sums = np.empty(DIGITS, np.int8), np.empty(n_sums(v, n_token), np.int32)
    rows, stride = inputs_shape(v, n_token, n_tile)
    inputs, flat_q = np.empty(rows * stride, np.int8), q.reshape(-1)
    prepare(v, flat_q, 0, n_token, n_token, n_tile, 0, inputs, stride)
    for block in range(n_blocks(n_token)):
        multiply(
            v, tiles.reshape(-1), n_tile, n_token, flat_q, inputs, stride, total, scale, 0, tensor_scale, begin, end,
            block, digits, sums, out.reshape(-1), out.shape[1],
        )  # fmt: skip


@kernel
def ternary_sums(v, tiles, q, total, begin, end, out):
    """The integer sums alone, int32 (for the comparison of integers)."""
    digits, sums = np.empty(DIGITS, np.int8), np.empty(SUMS, np.int32)
    n_tile, n_row, width = tiles.shape[1], dot.tile_rows(v), q.shape[1]
    flat, flat_q = tiles.reshape(-1), q.reshape(-1)
    tables = dot.table_bytes(v) * n_tile
    inputs, stride = (np.empty(DIRECT * tables, np.int8), tables) if tables else (flat_q, width)
    for first in range(0, len(q), DIRECT + 1):  # the last tokens are few, the others are not: both ways are compared
        n = min(DIRECT + 1, len(q) - first)
        direct = is_direct(n)
        if direct:
            for t in range(n if tables else 0):
                fill_tables(v, flat_q, (first + t) * width, n_tile, inputs, t * stride)
        for tile_row in range(begin, end):
            bias = row_tile_sums(
                v, flat, tile_row * n_tile * dot.tile_bytes(v), n_tile, flat_q, first * width, width,
                inputs, 0 if tables else first * width, stride, n, direct, digits, sums,
            )  # fmt: skip
            for t in range(n):
                for row in range(n_row * tile_row, min(n_row * tile_row + n_row, out.shape[1])):
                    out[first + t, row] = sums[n_row * t + row % n_row] - bias * total[first + t]


@kernel
def ternary_blocks(v, tiles, block_scale, q, total, scale, tensor_scale, begin, end, out):
    """Blocks of 256: exact integer sums a block, weighted by both block scales, added in float64, × tensor scale.

    A block is sixteen tiles of two bits; block_scale, scale and total are [n_row or n_token, n_col / 256].
    """
    n_token, stride = q.shape
    n_tile, n_row = tiles.shape[1], out.shape[1]
    flat, flat_q = tiles.reshape(-1), q.reshape(-1)
    sums = np.empty(16 * DIRECT, np.int32)
    y = np.empty(16 * DIRECT, np.float64)
    for tile_row in range(begin, end):
        rows = min(16, n_row - 16 * tile_row)
        for t in range(0, n_token, DIRECT):
            n = min(DIRECT, n_token - t)
            y[:] = 0.0
            for b in range(n_tile // 16):
                at = (tile_row * n_tile + 16 * b) * 64
                _packed_sums(v, flat, at, 16, flat_q, t * stride + 256 * b, stride, n, sums)
                for i in range(n):
                    for r in range(rows):
                        weight = np.float64(block_scale[16 * tile_row + r, b]) * np.float64(scale[t + i, b])
                        y[16 * i + r] += weight * np.float64(sums[16 * i + r] - total[t + i, b])
            for i in range(n):
                for r in range(rows):
                    out[t + i, 16 * tile_row + r] = _f32(y[16 * i + r]) * tensor_scale


@device
def _triple_digit(tile, row, within):
    """The digit of one weight of a tile of triples; see `row_tiles`."""
    byte = 16 * (row // 4 % 2) + 4 * (row // 8) + row % 4
    at, place = divmod(within, 3)
    left = (np.int32(tile[32 * (at // 2) + byte]) >> (4 * (at % 2))) & 15
    trit = 0
    for _ in range(place + 1):
        trit = (left + 1) % 3 - 1
        left = (left - trit) // 3
    return 1 - trit if (np.int32(tile[128 + byte]) >> (7 - at)) & 1 else 1 + trit


@device
def _digit(v, tiles, row, column):
    """The digit of one weight, of tiles [row tiles, n_tile, bytes of a tile]."""
    tile, within = divmod(column, dot.columns(v))
    if dot.columns(v) == 24:
        return _triple_digit(tiles[row // 32, tile], row % 32, within)
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
    for r in range(dot.tile_rows(v) * begin, min(dot.tile_rows(v) * end, n_row)):
        for i in range(n):
            weight[i] = _f32(_digit(v, tiles, r, i) - 1) * block_scale[r, i // 256]
        for t in range(x.shape[0]):
            acc = simd.zero_f32()
            for i in range(0, n, 16):
                acc = simd.fma_f32(simd.load(weight, i), simd.load(flat_x, t * n + i), acc)
            out[t, r] = simd.sum_f32(acc) * tensor_scale
