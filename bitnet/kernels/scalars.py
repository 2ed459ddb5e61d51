"""Arithmetic on single numbers that Python has no word for: rounded once, rounded to even, or seen as bits."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from bitnet.kernels.simd import declare, intrinsic

_F32 = ir.FloatType()


@intrinsic
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """Scalar a · b + c in float64, rounded once."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        double = ir.DoubleType()
        return builder.call(declare(builder, "llvm.fma.f64", double, double, double, double), args)

    return types.float64(types.float64, types.float64, types.float64), build


@intrinsic
def fma32(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """Scalar a · b + c in float32, rounded once."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.call(declare(builder, "llvm.fma.f32", _F32, _F32, _F32, _F32), args)

    return types.float32(types.float32, types.float32, types.float32), build


@intrinsic
def float_of_bits(typingctx: Any, bits: Any) -> Any:
    """The float64 with these 64 bits."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.int64), build


@intrinsic
def round_f16(typingctx: Any, value: Any) -> Any:
    """A float32 rounded to binary16 (half to even) and back."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fpext(builder.fptrunc(args[0], ir.HalfType()), _F32)

    return types.float32(types.float32), build


@intrinsic
def round_even(typingctx: Any, value: Any) -> Any:
    """A float32 rounded to an integer, half to even."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.call(declare(builder, "llvm.roundeven.f32", _F32, _F32), args)

    return types.float32(types.float32), build


@intrinsic
def bits_of_float(typingctx: Any, value: Any) -> Any:
    """The bits of a float32, as int32."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), build


@intrinsic
def float32_of_bits(typingctx: Any, bits: Any) -> Any:
    """The float32 with these 32 bits."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _F32)

    return types.float32(types.int32), build
