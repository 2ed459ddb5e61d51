"""Sixteen-lane vectors for numba kernels, as opaque values and a handful of intrinsics.

LLVM lowers a 16-lane vector to whatever the machine has (one AVX-512 register, two AVX2, four NEON), so a kernel
written with these sums in one fixed order everywhere: lane i adds elements i, i + 16, i + 32, …, and the lanes are
folded by one fixed tree (8, 4, 2, 1). Multiply-add is a true fused one, which is exactly rounded on every machine.
Nothing here checks bounds: wrappers in `linear.py` do.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.extending import models, register_model

intrinsic: Any = extending.intrinsic  # its stub asks callers for the typing context that numba supplies

LANES = 16

_F32 = ir.FloatType()
_I8, _I16, _I32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)


class _Vector(types.Type):
    """An opaque vector of `LANES` elements."""


class _Float32x16(_Vector):
    def __init__(self) -> None:
        super().__init__(name="float32x16")


class _Int32x16(_Vector):
    def __init__(self) -> None:
        super().__init__(name="int32x16")


float32x16 = _Float32x16()
int32x16 = _Int32x16()


def lanes_of(element: ir.Type) -> ir.VectorType:
    """The LLVM type of `LANES` elements."""
    return ir.VectorType(element, LANES)


@register_model(_Float32x16)
class _Float32x16Model(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, lanes_of(_F32))


@register_model(_Int32x16)
class _Int32x16Model(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, lanes_of(_I32))


def load_lanes(
    context: Any,
    builder: Any,
    array_type: Any,
    array: Any,
    index: Any,
    element: ir.Type,
    step: int = 0,
    lanes: int = LANES,
) -> Any:
    """An unaligned load of consecutive elements of a flat array, from `index` + `step`."""
    data = context.make_array(array_type)(context, builder, array).data
    at = builder.add(index, ir.Constant(index.type, step)) if step else index
    pointer = builder.bitcast(builder.gep(data, [at]), ir.VectorType(element, lanes).as_pointer())
    value = builder.load(pointer)
    value.align = 1
    return value


def declare(builder: Any, name: str, result: ir.Type, *arguments: ir.Type) -> Any:
    """A function that LLVM knows."""
    return builder.module.declare_intrinsic(name, fnty=ir.FunctionType(result, arguments))


def fold(builder: Any, vector: Any, add: Any) -> Any:
    """The sum of all lanes by the fixed tree 8, 4, 2, 1."""
    width = LANES
    while width > 1:
        width //= 2
        low = ir.Constant(ir.VectorType(_I32, width), list(range(width)))
        high = ir.Constant(ir.VectorType(_I32, width), list(range(width, 2 * width)))
        undef = ir.Constant(vector.type, ir.Undefined)
        vector = add(builder.shuffle_vector(vector, undef, low), builder.shuffle_vector(vector, undef, high))
    return builder.extract_element(vector, ir.Constant(_I32, 0))


def every_lane(builder: Any, value: Any) -> Any:
    """One number in every lane."""
    undef = ir.Constant(lanes_of(value.type), ir.Undefined)
    first = builder.insert_element(undef, value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, undef, ir.Constant(lanes_of(_I32), [0] * LANES))


@intrinsic
def zero_f32(typingctx: Any) -> Any:
    """Sixteen zeros."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(lanes_of(_F32), [0.0] * LANES)

    return float32x16(), build


@intrinsic
def zero_i32(typingctx: Any) -> Any:
    """Sixteen zeros."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(lanes_of(_I32), [0] * LANES)

    return int32x16(), build


@intrinsic
def splat_f32(typingctx: Any, value: Any) -> Any:
    """One float32 in every lane."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return every_lane(builder, args[0])

    return float32x16(types.float32), build


@intrinsic
def load(typingctx: Any, array: Any, index: Any) -> Any:
    """Sixteen numbers of a flat array as float32 (exact): float32, binary16 as uint16, bfloat16 as int16."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        dtype = signature.args[0].dtype
        if dtype == types.float32:
            return load_lanes(context, builder, signature.args[0], args[0], args[1], _F32)
        bits = load_lanes(context, builder, signature.args[0], args[0], args[1], _I16)
        if dtype == types.uint16:
            return builder.fpext(builder.bitcast(bits, lanes_of(ir.HalfType())), lanes_of(_F32))
        wide = builder.zext(bits, lanes_of(_I32))
        return builder.bitcast(builder.shl(wide, ir.Constant(lanes_of(_I32), [16] * LANES)), lanes_of(_F32))

    if array.dtype not in (types.float32, types.uint16, types.int16):
        return None
    return float32x16(array, types.intp), build


@intrinsic
def splat_at(typingctx: Any, array: Any, index: Any) -> Any:
    """One float32 of a flat array in every lane."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return every_lane(builder, builder.load(builder.gep(data, [args[1]])))

    return float32x16(array, types.intp), build


@intrinsic
def max_f32(typingctx: Any, a: Any, b: Any) -> Any:
    """The larger of a and b, lane by lane; b where either is NaN."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return float32x16(float32x16, float32x16), build


@intrinsic
def largest_f32(typingctx: Any, vector: Any) -> Any:
    """The largest lane."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return fold(builder, args[0], lambda a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))

    return types.float32(float32x16), build


@intrinsic
def multiply_f32(typingctx: Any, a: Any, b: Any) -> Any:
    """A · b, lane by lane."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fmul(*args)

    return float32x16(float32x16, float32x16), build


@intrinsic
def subtract_f32(typingctx: Any, a: Any, b: Any) -> Any:
    """A − b, lane by lane."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fsub(*args)

    return float32x16(float32x16, float32x16), build


@intrinsic
def store_f32(typingctx: Any, array: Any, index: Any, vector: Any) -> Any:
    """Sixteen float32 to a flat float32 array."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        pointer = builder.bitcast(builder.gep(data, [args[1]]), lanes_of(_F32).as_pointer())
        builder.store(args[2], pointer).align = 1
        return context.get_dummy_value()

    return types.void(array, types.intp, float32x16), build


@intrinsic
def fma_f32(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """A · b + c, lane by lane, rounded once."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = lanes_of(_F32)
        return builder.call(declare(builder, "llvm.fma.v16f32", v, v, v, v), args)

    return float32x16(float32x16, float32x16, float32x16), build


@intrinsic
def add_i32(typingctx: Any, a: Any, b: Any) -> Any:
    """A + b, lane by lane."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.add(*args)

    return int32x16(int32x16, int32x16), build


@intrinsic
def add_f32(typingctx: Any, a: Any, b: Any) -> Any:
    """A + b, lane by lane."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fadd(*args)

    return float32x16(float32x16, float32x16), build


@intrinsic
def sum_f32(typingctx: Any, vector: Any) -> Any:
    """The sum of the lanes by the fixed tree."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return fold(builder, args[0], builder.fadd)

    return types.float32(float32x16), build


@intrinsic
def store_sums_f32(typingctx: Any, a: Any, b: Any, c: Any, d: Any, array: Any, first: Any, second: Any) -> Any:
    """The sums of a and b to `array[first]` and the next, of c and d to `array[second]` and the next, as `sum_f32`."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def halves(x: Any, y: Any, width: int) -> Any:
            """Lanes of x and then of y, each folded to half of the `width` that it has."""
            low = [i + half * width for half in (0, 1) for i in range(width // 2)]
            order = [ir.Constant(ir.VectorType(_I32, width), [i + add for i in low]) for add in (0, width // 2)]
            return builder.fadd(*(builder.shuffle_vector(x, y, o) for o in order))

        def single(x: Any) -> Any:
            """Sixteen lanes folded to four."""
            for width in (8, 4):
                low = ir.Constant(ir.VectorType(_I32, width), list(range(width)))
                high = ir.Constant(ir.VectorType(_I32, width), list(range(width, 2 * width)))
                undef = ir.Constant(x.type, ir.Undefined)
                x = builder.fadd(builder.shuffle_vector(x, undef, low), builder.shuffle_vector(x, undef, high))
            return x

        quads = [single(x) for x in args[:4]]
        pairs = [halves(quads[i], quads[i + 1], 4) for i in (0, 2)]
        data = context.make_array(signature.args[4])(context, builder, args[4]).data
        for pair, at in zip(pairs, args[5:], strict=True):
            low = ir.Constant(ir.VectorType(_I32, 2), [0, 2])
            high = ir.Constant(ir.VectorType(_I32, 2), [1, 3])
            undef = ir.Constant(pair.type, ir.Undefined)
            both = builder.fadd(builder.shuffle_vector(pair, undef, low), builder.shuffle_vector(pair, undef, high))
            pointer = builder.bitcast(builder.gep(data, [at]), both.type.as_pointer())
            builder.store(both, pointer).align = 4
        return context.get_dummy_value()

    vector = float32x16
    return types.void(vector, vector, vector, vector, array, types.intp, types.intp), build


@intrinsic
def sum_i32(typingctx: Any, vector: Any) -> Any:
    """The sum of the lanes."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return fold(builder, args[0], builder.add)

    return types.int32(int32x16), build


@intrinsic
def add_ternary128(typingctx: Any, acc: Any, codes: Any, at: Any, q: Any, at_q: Any) -> Any:
    """Add 128 products of 2-bit codes (0, 1, 2) and int8 activations to `acc`.

    `codes[at : at + 32]` holds them in I2_S order: byte b carries elements b, b + 32, b + 64, b + 96 in bits 7-6, 5-4,
    3-2, 1-0. A lane sums eight products in int16 first: at most 8 · 2 · 128 = 2048 in magnitude, so it cannot wrap.
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        total = None
        for half in (0, 16):
            packed = load_lanes(context, builder, signature.args[1], args[1], args[2], _I8, half)
            for plane in range(4):
                shift = ir.Constant(lanes_of(_I8), [6 - 2 * plane] * LANES)
                code = builder.and_(builder.lshr(packed, shift), ir.Constant(lanes_of(_I8), [3] * LANES))
                active = load_lanes(context, builder, signature.args[3], args[3], args[4], _I8, 32 * plane + half)
                product = builder.mul(builder.zext(code, lanes_of(_I16)), builder.sext(active, lanes_of(_I16)))
                total = product if total is None else builder.add(total, product)
        return builder.add(args[0], builder.sext(total, lanes_of(_I32)))

    return int32x16(int32x16, codes, types.intp, q, types.intp), build


@intrinsic
def add_int8(typingctx: Any, acc: Any, a: Any, at_a: Any, b: Any, at_b: Any) -> Any:
    """Add 16 products of int8 and int8 to `acc`; a product is at most 2^14, so int16 holds it."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        left = builder.sext(load_lanes(context, builder, signature.args[1], args[1], args[2], _I8), lanes_of(_I16))
        right = builder.sext(load_lanes(context, builder, signature.args[3], args[3], args[4], _I8), lanes_of(_I16))
        return builder.add(args[0], builder.sext(builder.mul(left, right), lanes_of(_I32)))

    return int32x16(int32x16, a, types.intp, b, types.intp), build


@intrinsic
def add_int8_int16(typingctx: Any, acc: Any, a: Any, at_a: Any, b: Any, at_b: Any) -> Any:
    """Add 32 products of int8 and int16 to `acc`, two a lane; the caller knows that no lane wraps.

    Sums of neighbouring products of 16 bits are one instruction (pmaddwd) where LLVM finds it.
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = ir.VectorType(_I32, 32)
        left = builder.sext(load_lanes(context, builder, signature.args[1], args[1], args[2], _I8, lanes=32), wide)
        right = builder.sext(load_lanes(context, builder, signature.args[3], args[3], args[4], _I16, lanes=32), wide)
        product = builder.mul(left, right)
        undef = ir.Constant(wide, ir.Undefined)
        even, odd = (
            builder.shuffle_vector(product, undef, ir.Constant(lanes_of(_I32), list(range(i, 32, 2)))) for i in (0, 1)
        )
        return builder.add(args[0], builder.add(even, odd))

    return int32x16(int32x16, a, types.intp, b, types.intp), build
