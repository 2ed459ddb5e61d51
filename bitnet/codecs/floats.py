"""F32, F16 and BF16: plain floats, little-endian."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bitnet.codecs.base import Codec, Float32, Raw, Ternary, matrix_rows, to_float16
from bitnet.gguf_types import GGMLType


def decode_f32(raw: Raw, shape: Sequence[int]) -> Float32:
    """Weights of `shape`: a view of the bytes."""
    return matrix_rows(GGMLType.F32, raw, shape).reshape(-1).view("<f4").reshape(shape)


def decode_f16(raw: Raw, shape: Sequence[int]) -> Float32:
    """Weights of `shape`, f32."""
    return matrix_rows(GGMLType.F16, raw, shape).reshape(-1).view("<f2").astype(np.float32).reshape(shape)


def decode_bf16(raw: Raw, shape: Sequence[int]) -> Float32:
    """Weights of `shape`, f32."""
    bits = matrix_rows(GGMLType.BF16, raw, shape).reshape(-1).view("<u2").astype(np.uint32)
    bits <<= np.uint32(16)
    return bits.view(np.float32).reshape(shape)


def encode_f32(weights: Float32 | Ternary) -> Raw:
    """Bytes of a matrix."""
    return _dense(weights).reshape(-1).view(np.uint8)


def encode_f16(weights: Float32 | Ternary) -> Raw:
    """Bytes of a matrix, rounded to the nearest even. Raises `UsageError` where a weight is too large."""
    return to_float16(_dense(weights), "a weight").reshape(-1).view(np.uint8)


def encode_bf16(weights: Float32 | Ternary) -> Raw:
    """Bytes of a matrix, rounded to the nearest even; NaN stays NaN."""
    bits = _dense(weights).reshape(-1).view(np.uint32)
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(is_nan, (bits >> 16) | 0x40, rounded).astype("<u2").view(np.uint8)


def _dense(weights: Float32 | Ternary) -> Float32:
    return weights.dense() if isinstance(weights, Ternary) else np.ascontiguousarray(weights, "<f4")


F32 = Codec(type=GGMLType.F32, decode=decode_f32, encode=encode_f32)
F16 = Codec(type=GGMLType.F16, decode=decode_f16, encode=encode_f16)
BF16 = Codec(type=GGMLType.BF16, decode=decode_bf16, encode=encode_bf16)
