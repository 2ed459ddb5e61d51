"""Products by lookup: three weights of 32 rows at once, for machines whose fastest instruction is a byte shuffle.

A triple of trits (t0, t1, t2) is v = t0 + 3·t1 + 9·t2, −13..13: a sign and |v|, which is one of 14 and fits a shuffle's
four bits. For each triple of activations (a, b, c) a table holds the 14 products V = d0·a + d1·b + d2·c, where d are
the digits of |v| in balanced base 3; the sum over a row is exactly Σ ±V. So a lookup, a sign and an addition do what
takes three multiplications, and a weight takes 1.67 bits.

A shuffle looks bytes up and a V needs ten bits, so it is kept as V = 31·h + l with |l| <= 15: activations are
−128..127, so |V| <= 384 and |h| <= 12. Nothing can wrap:

- a tile adds eight lookups: |Σ l| <= 8 · 15 = 120 and |Σ h| <= 8 · 12 = 96, in int8;
- 1·l + 31·h by vpmaddubsw: at most 8 · 384 = 3072 a tile, in int16; ten tiles make 30,720;
- then int32, as every other kernel.

For many tokens tables cost more than they save, so a tile is unpacked to digits instead; see `ternary.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llvmlite import ir

from bitnet.kernels.vectors import Inputs, call, every, fence, lanes, load, opaque, same, shuffle, store

#: Lookups of a tile, and the bytes of their tables: l and h of 16 entries each.
LOOKUPS = 8
_TABLE = 32
_BASE = 31
#: V · _RECIPROCAL / 2^15, rounded, is V / 31, rounded, for |V| <= 384.
_RECIPROCAL = 1057
#: Bytes of a tile as rows: byte 16 i + 4 j + k is row 8 j + 4 i + k, so that unpacking puts rows in order.
_I32X8, _I16X16, _I8X32, _I8X16 = lanes(32, 8), lanes(16, 16), lanes(8, 32), lanes(8, 16)


def _digits(entry: int) -> list[int]:
    """The balanced base-3 digits of 0..13, the lowest first: −1, 0 or 1."""
    digits = []
    for _ in range(3):
        digits.append((entry + 1) % 3 - 1)
        entry = (entry - digits[-1]) // 3
    return digits


#: Of every entry of a table; two entries are never looked up.
_ENTRIES = [_digits(entry % 14) for entry in range(16)]


def _unpack_bytes(b: Any, low: Any, high: Any, *, upper: bool, width: int) -> Any:
    """As vpunpckl and vpunpckh do: elements of `width` bytes of two registers by turns, in each half."""
    n, part = 32 // width, 16 // width
    first = [half * part + i + (part // 2 if upper else 0) for half in (0, 1) for i in range(part // 2)]
    return shuffle(b, low, high, [at for i in first for at in (i, n + i)])


class Lookup:
    """AVX2: see the module.

    `add` takes tables in place of activations, `table_bytes` for every tile, as `fill` makes them.
    """

    group = 10
    block = 2
    bias = 0
    table_bytes = LOOKUPS * _TABLE

    def rows(self, n_token: int) -> int:
        """All rows of a tile."""
        return 32

    def vector(self, rows: int) -> ir.Type:
        """Int16 sums of half of the rows."""
        return _I16X16

    def count(self, n_token: int, rows: int) -> int:
        """Two for a token."""
        return 2 * n_token

    def fill(self, b: Any, codes: Any, tables: Any) -> None:
        """The tables of the 24 activations of a tile.

        Activations are made unsigned, so that vpmaddubsw adds d0·(a + 128) + d1·(b + 128); a constant takes
        128·(d0 + d1 + d2) away again.
        """
        excess = ir.Constant(_I16X16, [128 * sum(digits) for digits in _ENTRIES])
        for at in range(LOOKUPS):
            before = 1 if at == LOOKUPS - 1 else 0  # the last three are read with the one before, not the one after
            word = load(b, codes, 3 * at - before, ir.IntType(32))
            active = b.bitcast(b.xor(same(b, word, 8), every(_I32X8, 0x80808080)), _I8X32)
            halves = []
            for first in (0, 4):  # what packing puts in order
                entries = [*range(first, first + 4), *range(first + 8, first + 12)]
                digits = [d & 255 for e in entries for d in ([0] * before + _ENTRIES[e] + [0] * (1 - before))]
                pairs = call(b, "llvm.x86.avx2.pmadd.ub.sw", _I16X16, [active, ir.Constant(_I8X32, digits)])
                halves.append(call(b, "llvm.x86.avx2.pmadd.wd", _I32X8, [pairs, every(_I16X16, 1)]))
            value = b.sub(call(b, "llvm.x86.avx2.packssdw", _I16X16, halves), excess)
            high = call(b, "llvm.x86.avx2.pmul.hr.sw", _I16X16, [value, every(_I16X16, _RECIPROCAL)])
            low = b.sub(value, b.mul(high, every(_I16X16, _BASE)))
            both = b.bitcast(call(b, "llvm.x86.avx2.packsswb", _I8X32, [low, high]), lanes(64, 4))
            store(b, b.bitcast(shuffle(b, both, both, [0, 2, 1, 3]), _I8X32), tables, _TABLE * at)

    def _lookups(self, b: Any, tile: Any) -> Iterator[tuple[Any, Any]]:
        """Entries and signs (negative bytes for −, positive ones for +) of the eight lookups, 32 rows each."""
        signs = load(b, tile, 128, _I8X32)
        # a set bit below the signs, which moves up with them: vpsignb makes nothing of a zero
        stay = every(_I8X32, 8)
        later = b.bitcast(b.shl(b.bitcast(signs, _I16X16), every(_I16X16, 4)), _I8X32)
        halves = [b.or_(signs, stay), b.or_(later, stay)]
        for at in range(LOOKUPS):
            entries = load(b, tile, 32 * (at // 2), _I8X32)
            if at % 2:
                entries = b.bitcast(b.lshr(b.bitcast(entries, _I16X16), every(_I16X16, 4)), _I8X32)
            entries = b.and_(entries, every(_I8X32, 15))
            sign = halves[at // 4]
            if at % 4:  # doubled, and hidden from the optimiser, which would turn three doublings into shift and mask
                sign = halves[at // 4] = opaque(b, b.add(sign, sign))
            yield entries, sign

    def values(self, b: Any, tile: Any) -> Iterator[Any]:
        """The eight times 32 combinations of three trits as t0 + 3·t1 + 9·t2, −13..13."""
        for entries, sign in self._lookups(b, tile):
            yield call(b, "llvm.x86.avx2.psign.b", _I8X32, [entries, sign])

    def add(self, b: Any, state: list[Any], tile: Any, inputs: Inputs, n_token: int, rows: int) -> list[Any]:
        """Eight lookups of every row and token."""
        sums: list[list[Any]] = [[] for _ in range(n_token)]
        for at, (entries, sign) in enumerate(self._lookups(b, tile)):
            if n_token > 1:
                fence(b)
            for t in range(n_token):
                for part in (0, 1):
                    table = load(b, inputs.address(t, _TABLE * at + 16 * part), 0, _I8X16)
                    table = shuffle(b, table, table, list(range(16)) * 2)
                    value = call(b, "llvm.x86.avx2.pshuf.b", _I8X32, [table, entries])
                    value = call(b, "llvm.x86.avx2.psign.b", _I8X32, [value, sign])
                    if at:
                        sums[t][part] = b.add(sums[t][part], value)
                    else:
                        sums[t].append(value)
        weights = ir.Constant(_I8X32, [1, _BASE] * 16)
        state = list(state)
        for t, (low, high) in enumerate(sums):
            for half in (0, 1):
                pairs = _unpack_bytes(b, low, high, upper=half == 1, width=1)
                value = call(b, "llvm.x86.avx2.pmadd.ub.sw", _I16X16, [weights, pairs])
                state[2 * t + half] = b.add(state[2 * t + half], value)
        return state

    def flush(self, b: Any, state: list[Any], n_token: int, rows: int) -> list[Any]:
        """Int32 sums, rows in order."""
        order = [*range(4), *range(8, 12), *range(4, 8), *range(12, 16)]
        ordered = [b.sext(shuffle(b, x, x, order), lanes(32, 16)) for x in state]
        return [shuffle(b, x, y, list(range(32))) for x, y in zip(ordered[::2], ordered[1::2], strict=True)]

    def unpack(self, b: Any, tile: Any, digits: Any, next_rows: Any) -> None:
        """A tile as digits, 16 rows × 4 columns in 64 bytes; the lower 16 rows `next_rows` bytes further."""
        columns = []
        one = every(_I8X32, 1)
        for entries, sign in self._lookups(b, tile):
            for place in range(3):
                table = ir.Constant(_I8X32, [digits[place] & 255 for digits in _ENTRIES] * 2)
                trit = call(b, "llvm.x86.avx2.pshuf.b", _I8X32, [table, entries])
                columns.append(b.add(call(b, "llvm.x86.avx2.psign.b", _I8X32, [trit, sign]), one))
        for first in range(0, len(columns), 4):
            pairs = [
                _unpack_bytes(b, *columns[first + i : first + i + 2], upper=upper, width=1)
                for upper in (False, True)
                for i in (0, 2)
            ]
            shorts = [b.bitcast(x, _I16X16) for x in pairs]
            for half in (0, 1):
                to = b.gep(digits, [next_rows]) if half else digits
                for upper in (False, True):
                    rows = _unpack_bytes(b, *shorts[2 * half : 2 * half + 2], upper=upper, width=2)
                    store(b, b.bitcast(rows, _I8X32), to, 16 * first + 32 * upper)
