"""Codes of 8 bits in two planes, multiplied by rows of activations: intrinsics, for every variant.

A code is c = 4h + l − 128 with h in 0..63 and l in 0..3. Of every 128 codes h takes 96 bytes and l 32:

- byte b of the first, second and third 32 bytes of h holds h of codes b, b + 32 and b + 64 in its low 6 bits, and in
  its upper 2 bits the lowest, the middle and the highest two bits of h of code b + 96;
- byte b of l holds l of codes b, b + 32, b + 64 and b + 96, lowest bits first.

So 128 h are three loads and eleven operations on bytes, for up to four rows of activations together. Those are int8,
at most 127 in magnitude. Four products of an h and an activation are at most 4 · 63 · 127 = 32004: no sum in int16 can
wrap (h and l are unsigned, so vpmaddubsw, whose sums of two then cannot saturate, and vpdpbusd do the work). An
activation that is wanted more finely is 128a + b, with a and b in rows of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import models, register_model

from bitnet.kernels.dot import VariantType
from bitnet.kernels.simd import intrinsic, load_lanes

#: Codes that are stored together, and what they take of each plane.
GROUP, HIGH_BYTES, LOW_BYTES = 128, 96, 32

_I8, _I16, _I32, _INTP = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_BYTES = ir.VectorType(_I8, 32)

#: Adds the products of four vectors of 32 codes and 32 activations to some accumulators.
Dot = Callable[[Any, list[Any], list[Any], list[Any]], list[Any]]


def _all(type_: ir.VectorType, value: int) -> ir.Constant:
    return ir.Constant(type_, [value] * type_.count)


def _part(b: Any, vector: Any, begin: int, count: int) -> Any:
    """`count` elements of a vector from `begin` on."""
    mask = ir.Constant(ir.VectorType(_I32, count), list(range(begin, begin + count)))
    return b.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)


def _call(b: Any, name: str, result: ir.Type, args: list[Any]) -> Any:
    kind = ir.FunctionType(result, [a.type for a in args])
    function = b.module.globals.get(name) or ir.Function(b.module, kind, name)
    return b.call(function, args)


def _maddubs(b: Any, acc: list[Any], codes: list[Any], active: list[Any]) -> list[Any]:
    """AVX2: pairs in int16, two of them, then pairs of those in int32."""
    shorts, words = ir.VectorType(_I16, 16), ir.VectorType(_I32, 8)
    pairs = [_call(b, "llvm.x86.avx2.pmadd.ub.sw", shorts, [c, a]) for c, a in zip(codes, active, strict=True)]
    fours = [b.add(pairs[0], pairs[1]), b.add(pairs[2], pairs[3])]
    return [b.add(acc[0], b.add(*(_call(b, "llvm.x86.avx2.pmadd.wd", words, [x, _all(shorts, 1)]) for x in fours)))]


def _vpdpbusd(b: Any, acc: list[Any], codes: list[Any], active: list[Any]) -> list[Any]:
    """AVX-512 VNNI: four accumulators, because an instruction takes several cycles."""
    return [
        _call(b, "llvm.x86.avx512.vpdpbusd.256", x.type, [x, c, a]) for x, c, a in zip(acc, codes, active, strict=True)
    ]


def _sdot(b: Any, acc: list[Any], codes: list[Any], active: list[Any]) -> list[Any]:
    """NEON: sixteen bytes at a time."""
    halves = [[_part(b, v, at, 16) for v in vectors for at in (0, 16)] for vectors in (codes, active)]
    acc = list(acc)
    for i, (c, a) in enumerate(zip(*halves, strict=True)):
        at = i % len(acc)
        acc[at] = _call(b, "llvm.aarch64.neon.sdot.v4i32.v16i8", acc[at].type, [acc[at], c, a])
    return acc


def _products(b: Any, acc: list[Any], codes: list[Any], active: list[Any]) -> list[Any]:
    """Any machine: products in int16."""
    shorts, sixteen = ir.VectorType(_I16, 32), _all(acc[0].type, 16)
    total = None
    for c, a in zip(codes, active, strict=True):
        product = b.mul(b.zext(c, shorts), b.sext(a, shorts))
        total = product if total is None else b.add(total, product)
    pairs = b.bitcast(total, acc[0].type)
    return [b.add(acc[0], b.add(b.ashr(b.shl(pairs, sixteen), sixteen), b.ashr(pairs, sixteen)))]


#: By instruction set: how to multiply, the lanes of an accumulator, and how many accumulators there are.
_DOTS: dict[str, tuple[Dot, int, int]] = {
    "avx512vnni": (_vpdpbusd, 8, 4),
    "avx2": (_maddubs, 8, 1),
    "neon_dotprod": (_sdot, 4, 4),
    "generic": (_products, 16, 1),
}


class PlaneSums(types.Type):
    """Accumulators of one row of codes for `n` rows of activations."""

    def __init__(self, variant: VariantType, n: int) -> None:
        self.variant, self.n = variant, n
        self.dot, self.lanes, self.chains = _DOTS[variant.variant.isa]
        super().__init__(name=f"plane_sums({variant.variant.id},{n})")

    @property
    def llvm(self) -> ir.Type:
        """All of them."""
        return ir.ArrayType(ir.VectorType(_I32, self.lanes), self.n * self.chains)


@register_model(PlaneSums)
class _PlaneSumsModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, fe_type.llvm)


def _zero(variant: Any, n: int) -> Any:
    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(signature.return_type.llvm, None)

    return PlaneSums(variant, n)(variant), build


@intrinsic
def one(typingctx: Any, variant: Any) -> Any:
    """Sums for one row of activations, 0."""
    return _zero(variant, 1)


@intrinsic
def two(typingctx: Any, variant: Any) -> Any:
    """Sums for two rows of activations, 0."""
    return _zero(variant, 2)


@intrinsic
def four(typingctx: Any, variant: Any) -> Any:
    """Sums for four rows of activations, 0."""
    return _zero(variant, 4)


def _high(b: Any, load: Callable[[int], Any]) -> list[Any]:
    """128 h from their 96 bytes."""

    def shift(x: Any, n: int) -> Any:
        return b.lshr(x, _all(_BYTES, n)) if n else x

    def some(x: Any, bits: int) -> Any:
        return b.and_(x, _all(_BYTES, bits))

    x, y, z = (load(32 * i) for i in range(3))
    last = b.or_(b.or_(some(shift(x, 6), 0x03), some(shift(y, 4), 0x0C)), some(shift(z, 2), 0x30))
    return [some(x, 0x3F), some(y, 0x3F), some(z, 0x3F), last]


def _low(b: Any, load: Callable[[int], Any]) -> list[Any]:
    """128 l from their 32 bytes."""
    x = load(0)
    return [b.and_(b.lshr(x, _all(_BYTES, 2 * i)) if i else x, _all(_BYTES, 3)) for i in range(4)]


def _add(sums: Any, plane: Any, q: Any, unpack: Callable[[Any, Callable[[int], Any]], list[Any]]) -> Any:
    """Add the products of 128 codes at plane[at:] and the activations q[at_q:]; their rows are `stride` apart."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = signature.args[0]

        def codes(offset: int) -> Any:
            return load_lanes(context, builder, signature.args[1], args[1], args[2], _I8, offset, 32)

        def active(at: Any, offset: int) -> Any:
            return load_lanes(context, builder, signature.args[3], args[3], at, _I8, offset, 32)

        unpacked, state, at = unpack(builder, codes), args[0], args[4]
        for i in range(kind.n):
            mine = range(i * kind.chains, (i + 1) * kind.chains)
            vectors = [active(at, 32 * k) for k in range(4)]
            found = kind.dot(builder, [builder.extract_value(state, j) for j in mine], unpacked, vectors)
            for j, vector in zip(mine, found, strict=True):
                state = builder.insert_value(state, vector, j)
            at = builder.add(at, args[5])
        return state

    return sums(sums, plane, types.intp, q, types.intp, types.intp), build


@intrinsic
def add_high(typingctx: Any, sums: Any, plane: Any, at: Any, q: Any, at_q: Any, stride: Any) -> Any:
    """Add 128 products of h: see `_add`."""
    return _add(sums, plane, q, _high)


@intrinsic
def add_low(typingctx: Any, sums: Any, plane: Any, at: Any, q: Any, at_q: Any, stride: Any) -> Any:
    """Add 128 products of l: see `_add`."""
    return _add(sums, plane, q, _low)


@intrinsic
def store(typingctx: Any, sums: Any, out: Any, at: Any, stride: Any) -> Any:
    """Write the sum for row i of the activations to out[at + i · stride], int32."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = signature.args[0]
        data = context.make_array(signature.args[1])(context, builder, args[1]).data
        parts = [builder.extract_value(args[0], i) for i in range(args[0].type.count)]
        for i in range(kind.n):
            vector, *others = parts[i * kind.chains : (i + 1) * kind.chains]
            for other in others:
                vector = builder.add(vector, other)
            while vector.type.count > 1:
                half = vector.type.count // 2
                vector = builder.add(_part(builder, vector, 0, half), _part(builder, vector, half, half))
            total = builder.extract_element(vector, ir.Constant(_I32, 0))
            place = builder.add(args[2], builder.mul(args[3], ir.Constant(_INTP, i)))
            builder.store(total, builder.gep(data, [place]))
        return context.get_dummy_value()

    return types.void(sums, out, types.intp, types.intp), build
