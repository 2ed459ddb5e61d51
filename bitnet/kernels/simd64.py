"""Sixteen lanes of float64 for numba kernels: what `simd.py` is to float32."""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import models, register_model

from bitnet.kernels.simd import LANES, declare, every_lane, float32x16, fold, intrinsic, lanes_of, load_lanes

_F32, _F64 = ir.FloatType(), ir.DoubleType()
_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)


#: Of the series of e^r, from r^13 / 13! down to 1.
COEFFICIENTS = tuple(1.0 / math.factorial(k) for k in range(13, -1, -1))


class _Float64x16(types.Type):
    """An opaque vector of sixteen float64."""

    def __init__(self) -> None:
        super().__init__(name="float64x16")


float64x16 = _Float64x16()


@register_model(_Float64x16)
class _Float64x16Model(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, lanes_of(_F64))


@intrinsic
def zero_f64(typingctx: Any) -> Any:
    """Sixteen zeros."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(lanes_of(_F64), [0.0] * LANES)

    return float64x16(), build


@intrinsic
def splat_f64(typingctx: Any, value: Any) -> Any:
    """One float64 in every lane."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return every_lane(builder, args[0])

    return float64x16(types.float64), build


@intrinsic
def fma_f64(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """A · b + c, lane by lane, rounded once."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = lanes_of(_F64)
        return builder.call(declare(builder, "llvm.fma.v16f64", v, v, v, v), args)

    return float64x16(float64x16, float64x16, float64x16), build


@intrinsic
def widen(typingctx: Any, vector: Any) -> Any:
    """Sixteen float32 as float64, exactly."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fpext(args[0], lanes_of(_F64))

    return float64x16(float32x16), build


@intrinsic
def widen_int8(typingctx: Any, array: Any, index: Any) -> Any:
    """Sixteen int8 of a flat array as float64."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.sitofp(load_lanes(context, builder, signature.args[0], args[0], args[1], _I8), lanes_of(_F64))

    return float64x16(array, types.intp), build


@intrinsic
def widen_int32(typingctx: Any, array: Any, index: Any) -> Any:
    """Sixteen int32 of a flat array as float64."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.sitofp(load_lanes(context, builder, signature.args[0], args[0], args[1], _I32), lanes_of(_F64))

    return float64x16(array, types.intp), build


@intrinsic
def narrow(typingctx: Any, vector: Any) -> Any:
    """Sixteen float64 rounded to float32."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fptrunc(args[0], lanes_of(_F32))

    return float32x16(float64x16), build


@intrinsic
def sum_f64(typingctx: Any, vector: Any) -> Any:
    """The sum of the lanes by the fixed tree."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return fold(builder, args[0], builder.fadd)

    return types.float64(float64x16), build


@intrinsic
def store_f64(typingctx: Any, array: Any, index: Any, vector: Any) -> Any:
    """Sixteen float64 to a flat float64 array."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        pointer = builder.bitcast(builder.gep(data, [args[1]]), lanes_of(_F64).as_pointer())
        builder.store(args[2], pointer).align = 1
        return context.get_dummy_value()

    return types.void(array, types.intp, float64x16), build


@intrinsic
def largest_f64(typingctx: Any, vector: Any) -> Any:
    """The largest lane, none of them NaN."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return fold(builder, args[0], lambda a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))

    return types.float64(float64x16), build


@intrinsic
def exp_f64(typingctx: Any, x: Any) -> Any:
    """e^x, lane by lane, the operations of `bitnet.kernels.cpu.exp` in their order: the same bits."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = lanes_of(_F64)

        def all_lanes(value: float) -> Any:
            return ir.Constant(v, [value] * 16)

        def fma(a: Any, b: Any, c: Any) -> Any:
            return builder.call(declare(builder, "llvm.fma.v16f64", v, v, v, v), [a, b, c])

        scaled = builder.fadd(builder.fmul(args[0], all_lanes(1.4426950408889634)), all_lanes(0.5))
        n = builder.call(declare(builder, "llvm.floor.v16f64", v, v), [scaled])
        minus_n = builder.fneg(n)
        r = fma(minus_n, all_lanes(1.9082149292705877e-10), fma(minus_n, all_lanes(0.6931471803691238), args[0]))
        y = all_lanes(COEFFICIENTS[0])
        for coefficient in COEFFICIENTS[1:]:
            y = fma(y, r, all_lanes(coefficient))
        small = all_lanes(-1022.0)  # below, and where n is NaN, the power does not matter: the result is 0 or NaN
        exponent = builder.fptosi(builder.select(builder.fcmp_ordered(">", n, small), n, small), lanes_of(_I32))
        bits = builder.add(builder.sext(exponent, lanes_of(_I64)), ir.Constant(lanes_of(_I64), [1023] * 16))
        power = builder.bitcast(builder.shl(bits, ir.Constant(lanes_of(_I64), [52] * 16)), v)
        tiny = builder.fcmp_ordered("<", args[0], all_lanes(-708.0))
        return builder.select(tiny, all_lanes(0.0), builder.fmul(y, power))

    return float64x16(float64x16), build
