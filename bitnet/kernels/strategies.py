"""How each instruction set multiplies a tile of digits by int8 activations: builders of LLVM code.

A strategy says how many rows of a tile it takes at once, how its accumulators look, and how a tile is added and
accumulators are folded into int32 sums. Each has a second one for tiles that were unpacked, whose digits are bytes:
many tokens share the unpacking. Digits are 0..2 and activations −128..127, so a product lies in [−256, 254], and no
sum can wrap:

- `_Maddubs`: vpmaddubsw adds two products, [−512, 508], far from its saturation. A tile adds one such pair for each
  four of its columns to an int16 lane; 64 pairs make [−32768, 32512], which int16 holds.
- `_Int16`: an int16 lane takes two products of each plane: the same bounds.
- `_Dot4` (vpdpbusd, sdot, or 32-bit products): an int32 lane takes four products a plane; below 2^31 for any K below
  2^23.
- `_Dot4` on base-3 tiles: bytes up to 255 in place of digits. In 256 tiles each of A and B adds 256 · 20 products of at
  most 255 · 128, so 3A − B stays below 4 · 167,116,800 < 2^31; it is a multiple of 256, and >> 8 is exact.
- `lookup.Lookup`: see there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from llvmlite import ir

from bitnet.kernels.lookup import Lookup
from bitnet.kernels.variants import TILES, Layout, Variant
from bitnet.kernels.vectors import Inputs, call, every, join, lanes, load, opaque, store

_I64 = ir.IntType(64)


class Strategy(Protocol):
    """What `dot.py` asks of a variant."""

    group: int  # after how many tiles accumulators must be folded
    block: int  # tokens that share one reading of a tile, as many as the registers hold
    bias: int  # what the digits of its sums are too large by: 1 for 0..2, 0 for −1..1
    table_bytes: int  # of the tables that it reads in place of a tile's activations; 0 if it reads activations

    def rows(self, n_token: int) -> int:
        """Rows of a tile taken at once: half of them where all rows of all tokens need too many registers."""

    def vector(self, rows: int) -> ir.Type:
        """The type of one accumulator."""

    def count(self, n_token: int, rows: int) -> int:
        """How many accumulators there are."""

    def add(self, b: Any, state: list[Any], tile: Any, inputs: Inputs, n_token: int, rows: int) -> list[Any]:
        """The accumulators with the product of a tile (an address) and its activations added."""

    def flush(self, b: Any, state: list[Any], n_token: int, rows: int) -> list[Any]:
        """Int32 sums of the rows, one vector a token."""


class Packed(Strategy, Protocol):
    """A strategy for tiles as they are packed."""

    def unpack(self, b: Any, tile: Any, digits: Any, next_rows: Any) -> None:
        """Write a tile as digits: 4 columns × 16 rows in 64 bytes, then the next 4 columns.

        Rows beyond the first 16 go `next_rows` bytes further.
        """


def _digits(b: Any, words: Any, plane: int) -> Any:
    """Bits 2·plane and 2·plane + 1 of every byte of a vector of words."""
    shifted = b.lshr(words, every(words.type, 2 * plane)) if plane else words
    return b.and_(shifted, every(words.type, 0x03030303))


class _Planes:
    """Tiles of 16 rows whose bytes hold a digit of each of some planes, or, unpacked, planes of bytes."""

    bias = 1
    table_bytes = 0
    barrier: Callable[[Any, Any], Any] = staticmethod(lambda _builder, vector: vector)

    def __init__(self, layout: Layout, *, unpacked: bool) -> None:
        self.planes = TILES[layout].columns // 4
        self.base3 = layout == "base-3" and not unpacked
        self.is_unpacked = unpacked

    def words(self, b: Any, tile: Any, offset: int, n: int) -> Callable[[int], Any]:
        """Digits of n words of a tile, by plane."""
        if self.is_unpacked:
            return lambda plane: load(b, tile, 64 * plane + offset, lanes(32, n))
        packed = load(b, tile, offset, lanes(32, n))
        return lambda plane: _digits(b, packed, plane)

    def unpack(self, b: Any, tile: Any, digits: Any, next_rows: Any) -> None:
        words = load(b, tile, 0, lanes(32, 16))
        for plane in range(self.planes):
            if not self.base3:
                store(b, _digits(b, words, plane), digits, 64 * plane)
                continue
            y = b.bitcast(words, lanes(8, 64))  # a digit is the carry of 3·y: 1 from 86 on, 2 from 171
            one, two = (b.icmp_unsigned(">=", y, every(y.type, least)) for least in (86, 171))
            store(b, b.add(b.zext(one, y.type), b.zext(two, y.type)), digits, 64 * plane)
            words = self.barrier(b, b.bitcast(b.add(b.add(y, y), y), words.type))


class _Maddubs(_Planes):
    """AVX2: pairs of products in int16."""

    block = 4

    def __init__(self, layout: Layout, *, unpacked: bool = False) -> None:
        super().__init__(layout, unpacked=unpacked)
        self.group = 64 // self.planes

    def rows(self, n_token: int) -> int:
        return 16

    def vector(self, rows: int) -> ir.Type:
        return lanes(16, 16)

    def count(self, n_token: int, rows: int) -> int:
        return n_token * rows // 8

    def add(self, b: Any, state: list[Any], tile: Any, inputs: Inputs, n_token: int, rows: int) -> list[Any]:
        state, bytes32 = list(state), lanes(8, 32)
        halves = [self.words(b, tile, 32 * h, 8) for h in range(rows // 8)]
        for plane in range(self.planes):
            digits = [b.bitcast(half(plane), bytes32) for half in halves]
            for t in range(n_token):
                active = b.bitcast(inputs.word(t, plane, 8), bytes32)
                for h, digit in enumerate(digits):
                    pairs = call(b, "llvm.x86.avx2.pmadd.ub.sw", lanes(16, 16), [digit, active])
                    at = t * len(halves) + h
                    state[at] = b.add(state[at], pairs)
        return state

    def flush(self, b: Any, state: list[Any], n_token: int, rows: int) -> list[Any]:
        ones = every(lanes(16, 16), 1)
        fours = [call(b, "llvm.x86.avx2.pmadd.wd", lanes(32, 8), [x, ones]) for x in state]
        per_token = rows // 8
        return [join(b, fours[t * per_token : (t + 1) * per_token]) for t in range(n_token)]


class _Int16(_Planes):
    """Any machine: products in int16, even and odd bytes apart."""

    block = 4

    def __init__(self, layout: Layout, *, unpacked: bool = False) -> None:
        super().__init__(layout, unpacked=unpacked)
        self.group = 64 // self.planes

    def rows(self, n_token: int) -> int:
        return 16

    def vector(self, rows: int) -> ir.Type:
        return lanes(16, 2 * rows)

    def count(self, n_token: int, rows: int) -> int:
        return n_token

    def add(self, b: Any, state: list[Any], tile: Any, inputs: Inputs, n_token: int, rows: int) -> list[Any]:
        state, shorts = list(state), lanes(16, 2 * rows)
        words = self.words(b, tile, 0, rows)
        for plane in range(self.planes):
            both = words(plane)
            for odd in (0, 1):
                moved = b.lshr(both, every(both.type, 8)) if odd else both
                digits = b.bitcast(b.and_(moved, every(both.type, 0x00030003)), shorts)
                for t in range(n_token):
                    word = inputs.word(t, plane, rows)
                    active = b.bitcast(word if odd else b.shl(word, every(word.type, 8)), shorts)
                    product = b.mul(digits, b.ashr(active, every(shorts, 8)))
                    state[t] = b.add(state[t], product)
        return state

    def flush(self, b: Any, state: list[Any], n_token: int, rows: int) -> list[Any]:
        words = lanes(32, rows)
        sixteen = every(words, 16)
        pairs = [b.bitcast(x, words) for x in state]
        return [b.add(b.ashr(b.shl(x, sixteen), sixteen), b.ashr(x, sixteen)) for x in pairs]


class _Dot4(_Planes):
    """Instructions that add four products of unsigned and signed bytes to an int32 lane.

    Args:
        layout: Of the tiles.
        lanes_: Int32 lanes of a register.
        dot4: Builds one such instruction: (builder, accumulator, bytes, activations) -> accumulator.
        unpacked: Whether tiles are unpacked.
        barrier: Makes a vector opaque to the optimiser, which would turn y + y + y into slow multiplications.
    """

    group = 256
    block = 8

    def __init__(
        self,
        layout: Layout,
        lanes_: int,
        dot4: Callable[..., Any],
        *,
        unpacked: bool = False,
        barrier: Callable[[Any, Any], Any] = _Planes.barrier,
    ) -> None:
        super().__init__(layout, unpacked=unpacked)
        self.lanes, self.dot4, self.barrier = lanes_, dot4, barrier

    def rows(self, n_token: int) -> int:
        return 16 if n_token < 4 or self.lanes == 16 else 8

    def vector(self, rows: int) -> ir.Type:
        return lanes(32, self.lanes)

    def chains(self, n_token: int) -> int:
        """Accumulators for one sum: an instruction takes several cycles, so a single token needs several."""
        return self.planes if n_token < 4 else 1

    def count(self, n_token: int, rows: int) -> int:
        return n_token * (rows // self.lanes) * self.chains(n_token) * (2 if self.base3 else 1)

    def add(self, b: Any, state: list[Any], tile: Any, inputs: Inputs, n_token: int, rows: int) -> list[Any]:
        state, chains, parts = list(state), self.chains(n_token), rows // self.lanes
        for part in range(parts):
            digits = self.words(b, tile, 4 * self.lanes * part, self.lanes)
            words = load(b, tile, 4 * self.lanes * part, lanes(32, self.lanes)) if self.base3 else None
            for plane in range(self.planes):
                factors = [words if self.base3 else digits(plane)]
                if words is not None:
                    y = b.bitcast(words, lanes(8, 4 * self.lanes))
                    words = self.barrier(b, b.bitcast(b.add(b.add(y, y), y), words.type))
                    factors.append(words)
                for t in range(n_token):
                    active = inputs.word(t, plane, self.lanes)
                    for i, factor in enumerate(factors):
                        at = ((t * parts + part) * chains + plane % chains) * len(factors) + i
                        state[at] = self.dot4(b, state[at], factor, active)
        return state

    def flush(self, b: Any, state: list[Any], n_token: int, rows: int) -> list[Any]:
        parts, kinds, chains = rows // self.lanes, 2 if self.base3 else 1, self.chains(n_token)
        sums = []
        for i in range(n_token * parts):
            mine = state[i * chains * kinds : (i + 1) * chains * kinds]
            totals = []
            for kind in range(kinds):
                total = mine[kind]
                for x in mine[kind + kinds :: kinds]:
                    total = b.add(total, x)
                totals.append(total)
            if self.base3:
                three = b.add(b.add(totals[0], totals[0]), totals[0])
                totals = [b.ashr(b.sub(three, totals[1]), every(three.type, 8))]
            sums.append(totals[0])
        return [join(b, sums[t * parts : (t + 1) * parts]) for t in range(n_token)]


def _vpdpbusd(b: Any, acc: Any, words: Any, active: Any) -> Any:
    byte = lanes(8, 64)
    return call(b, "llvm.x86.avx512.vpdpbusd.512", acc.type, [acc, b.bitcast(words, byte), b.bitcast(active, byte)])


def _sdot(b: Any, acc: Any, words: Any, active: Any) -> Any:
    byte = lanes(8, 16)
    name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
    return call(b, name, acc.type, [acc, b.bitcast(words, byte), b.bitcast(active, byte)])


def _products(b: Any, acc: Any, words: Any, active: Any) -> Any:
    """The same without an instruction for it."""
    for byte in range(4):
        shift = every(acc.type, 24 - 8 * byte)
        digit = b.and_(b.lshr(words, every(acc.type, 8 * byte)), every(acc.type, 255))
        acc = b.add(acc, b.mul(digit, b.ashr(b.shl(active, shift), every(acc.type, 24))))
    return acc


#: By id: for tiles as they are packed, and unpacked.
_STRATEGIES: dict[str, tuple[Packed, Strategy]] = {
    "avx512vnni": (
        _Dot4("base-3", 16, _vpdpbusd, barrier=opaque),
        _Dot4("base-3", 16, _vpdpbusd, unpacked=True),
    ),
    "avx512vnni-2bit": (_Dot4("2-bit", 16, _vpdpbusd), _Dot4("2-bit", 16, _vpdpbusd, unpacked=True)),
    "avx2": (Lookup(), _Maddubs("triples", unpacked=True)),
    "avx2-2bit": (_Maddubs("2-bit"), _Maddubs("2-bit", unpacked=True)),
    "neon": (_Dot4("2-bit", 4, _sdot), _Dot4("2-bit", 4, _sdot, unpacked=True)),
    "generic": (_Int16("2-bit"), _Int16("2-bit", unpacked=True)),
    "generic-base3": (_Dot4("base-3", 16, _products), _Dot4("base-3", 16, _products, unpacked=True)),
}


def of(variant: Variant) -> tuple[Packed, Strategy]:
    """How a variant multiplies tiles as they are packed, and tiles that were unpacked."""
    return _STRATEGIES[variant.id]
