"""Products of many tokens by tables of tokens: an addition of a vector does three weights for sixteen tokens.

Three weights of a row are one of 27 combinations. For three activations of sixty-four tokens a table holds all 27 sums,
each as a vector of sixty-four int16; then a row of the matrix adds, for every three of its weights, the entry that they
name. That is a third of the additions of `vpmaddubsw` and none of its multiplications, and every sum stays exact:

- an entry is ±a ±b ±c of activations −128..127, |entry| <= 384;
- a tile of 24 columns adds eight entries, and ten tiles at most are added in int16: 80 · 384 = 30,720;
- then int32, as in every other kernel.

The tables of a tile fill most of a first-level cache, so a tile's columns are done for many rows before the next; their
int16 sums, 128 bytes a row, come and go through the second-level cache. Tokens lie side by side for it:

    turned       [blocks of 64 tokens, columns of all tiles, 64] int8
    tables       [8, 27, 64] int16, entry t0 + 3·t1 + 9·t2 + 13 of the trits t; in `digits`, with a tile's entries
    entries      [8, 32] uint8, the combinations of a tile's eight times three columns and 32 rows
    parts        [rows, 64] int16, at the end of `sums`; when they are done with, the tokens' scales
    sums         [rows, 64] int32
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from bitnet.kernels import dot, scalars
from bitnet.kernels.arrays import part
from bitnet.kernels.compile import device
from bitnet.kernels.lookup import LOOKUPS, Lookup
from bitnet.kernels.simd import intrinsic
from bitnet.kernels.vectors import every, lanes, load, store

#: Tokens of a block: four vectors of AVX2, as many as hide the time that an addition takes.
BLOCK = 64
#: Fewer tokens of a block are done faster by unpacked tiles.
ENOUGH = 40
#: Row tiles that share the tables of a tile: their sums fit a second-level cache.
ROW_TILES = 32
#: With fewer row tiles the tables take a tenth of the time and more.
LEAST_ROW_TILES = 16

_ROWS, _COLUMNS = 32, 3 * LOOKUPS  # of a tile of triples
_COMBINATIONS = 27
#: Bytes of an entry (a shift), of one table, and of all tables of a tile.
_ENTRY = 7
_TABLE = _COMBINATIONS << _ENTRY
_TABLES = LOOKUPS * _TABLE
#: Int16 sums take 8 · 384 from a tile.
_TILES = 10
#: Int32 elements that `sums` must have.
SUMS = ROW_TILES * _ROWS * (BLOCK + BLOCK // 2)
#: Tiles whose weights are fetched ahead.
_TILES_AHEAD = 2

_I16X16, _I32X16, _F32X16, _I64 = lanes(16, 16), lanes(32, 16), ir.VectorType(ir.FloatType(), 16), ir.IntType(64)

_f32 = np.float32


def _bytes(context: Any, b: Any, array_type: Any, array: Any, at: Any) -> Any:
    """The address of byte `at` of a flat array of any type."""
    data = context.make_array(array_type)(context, b, array).data
    return b.gep(b.bitcast(data, ir.IntType(8).as_pointer()), [at])


def has_triples(packed: object) -> bool:
    """Whether tiles of a strategy can be multiplied so."""
    return isinstance(packed, Lookup)


@intrinsic
def suits(typingctx: Any, variant: Any) -> Any:
    """Whether a variant's tiles can be multiplied so, a constant."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(ir.IntType(1), int(has_triples(variant.packed)))

    return types.boolean(variant), build


@intrinsic
def _unpack_entries(typingctx: Any, variant: Any, tiles: Any, at: Any, entries: Any, to: Any) -> Any:
    """The entries of the tile at `tiles[at]`."""

    def build(context: Any, b: Any, signature: Any, args: Any) -> Any:
        strategy = signature.args[0].packed
        if isinstance(strategy, Lookup):
            tile = _bytes(context, b, signature.args[1], args[1], args[2])
            found = _bytes(context, b, signature.args[3], args[3], args[4])
            for i, value in enumerate(strategy.values(b, tile)):
                store(b, b.add(value, every(value.type, _COMBINATIONS // 2)), found, _ROWS * i)
        return context.get_dummy_value()

    return types.void(variant, tiles, types.intp, entries, types.intp), build


@intrinsic
def _fill(typingctx: Any, turned: Any, at: Any, tables: Any, to: Any) -> Any:
    """All sums of three activations of sixteen tokens, the first of them at `turned[at]`, to byte `to` of a table."""

    def build(context: Any, b: Any, signature: Any, args: Any) -> Any:
        codes = _bytes(context, b, signature.args[0], args[0], args[1])
        table = _bytes(context, b, signature.args[2], args[2], args[3])
        active = [b.sext(load(b, codes, BLOCK * i, lanes(8, 16)), _I16X16) for i in range(3)]
        sums = [ir.Constant(_I16X16, None)]
        for x in reversed(active):  # so that the first activation's trit counts least
            sums = [y for s in sums for y in (b.sub(s, x), s, b.add(s, x))]
        for entry, value in enumerate(sums):
            store(b, value, table, entry << _ENTRY)
        return context.get_dummy_value()

    return types.void(turned, types.intp, tables, types.intp), build


@intrinsic
def _add_row(typingctx: Any, tables: Any, entries: Any, at: Any, parts: Any, to: Any) -> Any:
    """Add the entries of one row, `entries[at]` and on, to the 64 int16 from byte `to` of the sums."""

    def build(context: Any, b: Any, signature: Any, args: Any) -> Any:
        table = _bytes(context, b, signature.args[0], args[0], ir.Constant(_I64, 0))
        named = _bytes(context, b, signature.args[1], args[1], args[2])
        part = _bytes(context, b, signature.args[3], args[3], args[4])
        state = [load(b, part, 32 * i, _I16X16) for i in range(4)]
        for lookup in range(LOOKUPS):
            entry = b.zext(load(b, named, _ROWS * lookup, ir.IntType(8)), _I64)
            here = b.gep(table, [b.shl(entry, ir.Constant(_I64, _ENTRY))])
            state = [b.add(s, load(b, here, _TABLE * lookup + 32 * i, _I16X16)) for i, s in enumerate(state)]
        for i, s in enumerate(state):
            store(b, s, part, 32 * i)
        return context.get_dummy_value()

    return types.void(tables, entries, types.intp, parts, types.intp), build


@intrinsic
def _flush(typingctx: Any, sums: Any, part: Any, to: Any) -> Any:
    """Add sixteen int16 from byte `part` of the sums to the int32 from byte `to`, and leave zeros."""

    def build(context: Any, b: Any, signature: Any, args: Any) -> Any:
        source = _bytes(context, b, signature.args[0], args[0], args[1])
        target = _bytes(context, b, signature.args[0], args[0], args[2])
        wide = b.sext(load(b, source, 0, _I16X16), _I32X16)
        store(b, b.add(load(b, target, 0, _I32X16), wide), target, 0)
        store(b, ir.Constant(_I16X16, None), source, 0)
        return context.get_dummy_value()

    return types.void(sums, types.intp, types.intp), build


@intrinsic
def _scale(typingctx: Any, sums: Any, at: Any, at_scale: Any, tensor_scale: Any) -> Any:
    """Sixteen int32 from byte `at` become float32 in their place: ÷ the scales from byte `at_scale` × the tensor's."""

    def build(context: Any, b: Any, signature: Any, args: Any) -> Any:
        target = _bytes(context, b, signature.args[0], args[0], args[1])
        scales = load(b, _bytes(context, b, signature.args[0], args[0], args[2]), 0, _F32X16)
        factor = b.insert_element(ir.Constant(_F32X16, ir.Undefined), args[3], ir.Constant(ir.IntType(32), 0))
        factor = b.shuffle_vector(factor, factor, ir.Constant(_I32X16, [0] * 16))
        found = b.sitofp(load(b, target, 0, _I32X16), _F32X16)
        store(b, b.fmul(b.fdiv(found, scales), factor), target, 0)
        return context.get_dummy_value()

    return types.void(sums, types.intp, types.intp, types.float32), build


@device
def turn(q, begin, end, n_tile, turned):
    """Tokens [begin, end) of q [T, columns of all tiles] to their places in turned; both flat."""
    for tile in range(n_tile):
        for t in range(begin, end):
            codes = part(q, (t * n_tile + tile) * _COLUMNS, _COLUMNS)
            to = part(turned, (t // BLOCK * n_tile + tile) * _COLUMNS * BLOCK + t % BLOCK, _COLUMNS * BLOCK)
            for c in range(_COLUMNS):
                to[BLOCK * c] = codes[c]


@device
def _tile_sums(v, tiles, at, stride, row_tiles, turned, at_turned, digits, sums, parts):
    """Adds one tile of each of some row tiles, `stride` bytes apart, to the int16 sums."""
    for lookup in range(LOOKUPS):
        for t in range(0, BLOCK, 16):
            _fill(turned, at_turned + 3 * BLOCK * lookup + t, digits, _TABLE * lookup + 2 * t)
    for tile_row in range(row_tiles):
        here = at + stride * tile_row
        for line in range(0, dot.tile_bytes(v), 64):
            dot.prefetch(tiles, here + _TILES_AHEAD * dot.tile_bytes(v) + line)
        _unpack_entries(v, tiles, here, digits, _TABLES)
        to = parts + 2 * BLOCK * _ROWS * tile_row
        for eight in range(4):  # rows, and where `row_tiles.py` puts them
            for row in range(4):
                _add_row(digits, digits, _TABLES + 4 * eight + row, sums, to + 2 * BLOCK * (8 * eight + row))
                _add_row(digits, digits, _TABLES + 4 * eight + row + 16, sums, to + 2 * BLOCK * (8 * eight + row + 4))


@device
def _write(sums, scales, scale, tensor_scale, first, n_token, row, n_row, out, n_out):
    """Results of rows [row, row + n_row) and tokens [first, first + n_token), sixteen rows at a time.

    sums[scales:] is free.
    """
    for t in range(BLOCK):
        sums[scales + t] = scalars.bits_of_float(scale[first + t] if t < n_token else _f32(1.0))
    for at in range(0, 4 * BLOCK * n_row, 64):
        _scale(sums, at, 4 * scales + at % (4 * BLOCK), tensor_scale)
    for r in range(0, n_row, 16):
        n = min(16, n_row - r)
        for t in range(n_token):
            to, found = part(out, n_out * (first + t) + row + r, n), part(sums, BLOCK * r + t, BLOCK * n)
            for i in range(n):
                to[i] = scalars.float32_of_bits(found[BLOCK * i])


@device
def multiply(v, tiles, n_tile, turned, scale, tensor_scale, begin, end, first, n_token, digits, sums, out, n_out):
    """The products of row tiles [begin, end) and one block of tokens, the first of which is `first`; arrays are flat.

    digits needs `ternary.DIGITS` bytes and sums `SUMS` int32.
    """
    stride = n_tile * dot.tile_bytes(v)
    for begin_here in range(begin, end, ROW_TILES):
        row_tiles = min(ROW_TILES, end - begin_here)
        parts = 4 * BLOCK * _ROWS * row_tiles
        for i in range((parts + parts // 2) // 4):
            sums[i] = 0
        for tile in range(n_tile):
            _tile_sums(
                v, tiles, stride * begin_here + dot.tile_bytes(v) * tile, stride, row_tiles,
                turned, (first // BLOCK * n_tile + tile) * _COLUMNS * BLOCK, digits, sums, parts,
            )  # fmt: skip
            if tile % _TILES == _TILES - 1 or tile == n_tile - 1:
                for at in range(0, parts // 2, 32):
                    _flush(sums, parts + at, 2 * at)
        row = _ROWS * begin_here
        n_row = min(_ROWS * row_tiles, n_out - row)
        _write(sums, parts // 4, scale, tensor_scale, first, n_token, row, n_row, out, n_out)
