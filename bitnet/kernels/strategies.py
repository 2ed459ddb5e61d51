"""How each instruction set multiplies a tile of digits by int8 activations: builders of LLVM code.

A strategy says how many rows of a tile it takes at once, how its accumulators look, and how a tile is added and
accumulators are folded into int32 sums. Digits are 0..2 and activations −128..127, so a product lies in [−256, 254],
and no sum can wrap:

- `_Maddubs`: vpmaddubsw adds two products, [−512, 508], far from its saturation. A tile adds one such pair for each of
  its four planes to an int16 lane, [−2048, 2032]; sixteen tiles make [−32768, 32512], which int16 holds.
- `_Int16`: an int16 lane takes two products of each plane: the same bounds.
- `_Dot4` (vpdpbusd, sdot, or 32-bit products): an int32 lane takes four products a plane, 16 a tile; below 2^31 for
  any K below 2^23.
- `_Dot4` on base-3 tiles: bytes up to 255 in place of digits. In 256 tiles each of A and B adds 256 · 20 products of at
  most 255 · 128, so 3A − B stays below 4 · 167,116,800 < 2^31; it is a multiple of 256, and >> 8 is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from llvmlite import ir

from bitnet.kernels.variants import Variant

_I8, _I16, _I32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)

#: The activations of a token's plane, four int8 in one word.
Four = Callable[[int, int], Any]


class Strategy(Protocol):
    """What `dot.py` asks of a variant."""

    group: int
    block: int  # tokens that share one reading of a tile, as many as the registers hold

    def rows(self, n_token: int) -> int:
        """Rows of a tile taken at once: half of them where 16 rows of all tokens need too many registers."""

    def vector(self, rows: int) -> ir.Type:
        """The type of one accumulator."""

    def count(self, n_token: int, rows: int) -> int:
        """How many accumulators there are."""

    def add(self, b: Any, state: list[Any], tile: Any, four: Four, n_token: int, rows: int) -> list[Any]:
        """The accumulators with the product of a tile (an address) and its activations added."""

    def flush(self, b: Any, state: list[Any], n_token: int, rows: int) -> list[Any]:
        """Int32 sums of the rows, one vector a token."""


def _of(element: ir.Type, lanes: int) -> ir.VectorType:
    return ir.VectorType(element, lanes)


def _all(type_: ir.VectorType, value: int) -> ir.Constant:
    return ir.Constant(type_, [value] * type_.count)


def _load(b: Any, address: Any, offset: int, type_: ir.Type) -> Any:
    pointer = b.gep(address, [ir.Constant(ir.IntType(64), offset)])
    value = b.load(b.bitcast(pointer, type_.as_pointer()))
    value.align = 4
    return value


def _splat(b: Any, word: Any, lanes: int) -> Any:
    undef = ir.Constant(_of(_I32, lanes), ir.Undefined)
    first = b.insert_element(undef, word, ir.Constant(_I32, 0))
    return b.shuffle_vector(first, undef, ir.Constant(_of(_I32, lanes), [0] * lanes))


def _join(b: Any, vectors: list[Any]) -> Any:
    """Vectors one after another in one; their number is a power of two."""
    while len(vectors) > 1:
        n = vectors[0].type.count
        mask = ir.Constant(_of(_I32, 2 * n), list(range(2 * n)))
        vectors = [b.shuffle_vector(x, y, mask) for x, y in zip(vectors[::2], vectors[1::2], strict=True)]
    return vectors[0]


def _call(b: Any, name: str, result: ir.Type, args: list[Any]) -> Any:
    kind = ir.FunctionType(result, [a.type for a in args])
    function = b.module.globals.get(name) or ir.Function(b.module, kind, name)
    return b.call(function, args)


def _digits(b: Any, words: Any, plane: int) -> Any:
    """Bits 2·plane and 2·plane + 1 of every byte of a vector of words."""
    shifted = b.lshr(words, _all(words.type, 2 * plane)) if plane else words
    return b.and_(shifted, _all(words.type, 0x03030303))


class _Maddubs:
    """AVX2: pairs of products in int16."""

    group = 16
    block = 4

    def rows(self, n_token: int) -> int:
        return 16

    def vector(self, rows: int) -> ir.Type:
        return _of(_I16, 16)

    def count(self, n_token: int, rows: int) -> int:
        return n_token * rows // 8

    def add(self, b: Any, state: list[Any], tile: Any, four: Four, n_token: int, rows: int) -> list[Any]:
        state, bytes32 = list(state), _of(_I8, 32)
        halves = [_load(b, tile, 32 * h, _of(_I32, 8)) for h in range(rows // 8)]
        for plane in range(4):
            digits = [b.bitcast(_digits(b, half, plane), bytes32) for half in halves]
            for t in range(n_token):
                active = b.bitcast(_splat(b, four(t, plane), 8), bytes32)
                for h, digit in enumerate(digits):
                    pairs = _call(b, "llvm.x86.avx2.pmadd.ub.sw", _of(_I16, 16), [digit, active])
                    at = t * len(halves) + h
                    state[at] = b.add(state[at], pairs)
        return state

    def flush(self, b: Any, state: list[Any], n_token: int, rows: int) -> list[Any]:
        ones = _all(_of(_I16, 16), 1)
        fours = [_call(b, "llvm.x86.avx2.pmadd.wd", _of(_I32, 8), [x, ones]) for x in state]
        per_token = rows // 8
        return [_join(b, fours[t * per_token : (t + 1) * per_token]) for t in range(n_token)]


class _Int16:
    """Any machine: products in int16, even and odd bytes apart."""

    group = 16
    block = 4

    def rows(self, n_token: int) -> int:
        return 16

    def vector(self, rows: int) -> ir.Type:
        return _of(_I16, 2 * rows)

    def count(self, n_token: int, rows: int) -> int:
        return n_token

    def add(self, b: Any, state: list[Any], tile: Any, four: Four, n_token: int, rows: int) -> list[Any]:
        state, shorts, eight = list(state), _of(_I16, 2 * rows), ir.Constant(_I32, 8)
        words = _load(b, tile, 0, _of(_I32, rows))
        for plane in range(4):
            for odd in (0, 1):
                shift = _all(words.type, 2 * plane + 8 * odd)
                digits = b.bitcast(b.and_(b.lshr(words, shift), _all(words.type, 0x00030003)), shorts)
                for t in range(n_token):
                    word = four(t, plane)
                    active = b.bitcast(_splat(b, word if odd else b.shl(word, eight), rows), shorts)
                    product = b.mul(digits, b.ashr(active, _all(shorts, 8)))
                    state[t] = b.add(state[t], product)
        return state

    def flush(self, b: Any, state: list[Any], n_token: int, rows: int) -> list[Any]:
        words = _of(_I32, rows)
        sixteen = _all(words, 16)
        pairs = [b.bitcast(x, words) for x in state]
        return [b.add(b.ashr(b.shl(x, sixteen), sixteen), b.ashr(x, sixteen)) for x in pairs]


class _Dot4:
    """Instructions that add four products of unsigned and signed bytes to an int32 lane.

    Args:
        lanes: Int32 lanes of a register.
        dot4: Builds one such instruction: (builder, accumulator, bytes, activations) -> accumulator.
        base3: Whether tiles are base-3.
        barrier: Makes a vector opaque to the optimiser, which would turn y + y + y into slow multiplications.
    """

    def __init__(
        self,
        lanes: int,
        dot4: Callable[..., Any],
        *,
        base3: bool = False,
        barrier: Callable[[Any, Any], Any] = lambda _builder, vector: vector,
    ) -> None:
        self.lanes, self.dot4, self.base3, self.barrier = lanes, dot4, base3, barrier
        self.planes = 5 if base3 else 4
        self.group = 256
        self.block = 8

    def rows(self, n_token: int) -> int:
        return 16 if n_token < 4 or self.lanes == 16 else 8

    def vector(self, rows: int) -> ir.Type:
        return _of(_I32, self.lanes)

    def chains(self, n_token: int) -> int:
        """Accumulators for one sum: an instruction takes several cycles, so a single token needs several."""
        return self.planes if n_token < 4 else 1

    def count(self, n_token: int, rows: int) -> int:
        return n_token * (rows // self.lanes) * self.chains(n_token) * (2 if self.base3 else 1)

    def add(self, b: Any, state: list[Any], tile: Any, four: Four, n_token: int, rows: int) -> list[Any]:
        state, chains, parts = list(state), self.chains(n_token), rows // self.lanes
        for part in range(parts):
            words = _load(b, tile, 4 * self.lanes * part, _of(_I32, self.lanes))
            for plane in range(self.planes):
                factors = [words] if self.base3 else [_digits(b, words, plane)]
                if self.base3:
                    y = b.bitcast(words, _of(_I8, 4 * self.lanes))
                    words = self.barrier(b, b.bitcast(b.add(b.add(y, y), y), words.type))
                    factors.append(words)
                for t in range(n_token):
                    active = _splat(b, four(t, plane), self.lanes)
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
                totals = [b.ashr(b.sub(three, totals[1]), _all(three.type, 8))]
            sums.append(totals[0])
        return [_join(b, sums[t * parts : (t + 1) * parts]) for t in range(n_token)]


def _vpdpbusd(b: Any, acc: Any, words: Any, active: Any) -> Any:
    byte = _of(_I8, 64)
    return _call(b, "llvm.x86.avx512.vpdpbusd.512", acc.type, [acc, b.bitcast(words, byte), b.bitcast(active, byte)])


def _sdot(b: Any, acc: Any, words: Any, active: Any) -> Any:
    byte = _of(_I8, 16)
    return _call(
        b, "llvm.aarch64.neon.sdot.v4i32.v16i8", acc.type, [acc, b.bitcast(words, byte), b.bitcast(active, byte)]
    )


def _products(b: Any, acc: Any, words: Any, active: Any) -> Any:
    """The same without an instruction for it."""
    for byte in range(4):
        shift = _all(acc.type, 24 - 8 * byte)
        digit = b.and_(b.lshr(words, _all(acc.type, 8 * byte)), _all(acc.type, 255))
        acc = b.add(acc, b.mul(digit, b.ashr(b.shl(active, shift), _all(acc.type, 24))))
    return acc


def _opaque(b: Any, vector: Any) -> Any:
    kind = ir.FunctionType(vector.type, [vector.type])
    return b.asm(kind, "", "=v,0", [vector], side_effect=False)


_STRATEGIES: dict[str, Strategy] = {
    "avx512vnni": _Dot4(16, _vpdpbusd, base3=True, barrier=_opaque),
    "avx512vnni-2bit": _Dot4(16, _vpdpbusd),
    "avx2": _Maddubs(),
    "neon": _Dot4(4, _sdot),
    "generic": _Int16(),
    "generic-base3": _Dot4(16, _products, base3=True),
}


def of(variant: Variant) -> Strategy:
    """The strategy of a variant."""
    return _STRATEGIES[variant.id]
