"""Every other type of ggml: read, not written, as float32.

Block types are decoded by the `gguf` package; whole numbers and float64 become float32 where that is exact or, for
float64, the nearest. Two of ggml's types are for activations and for sums only; I8_S of bitnet.cpp has no scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.codecs.base import Codec, Float32, Raw, Ternary, flat_bytes
from bitnet.errors import ModelFileError, UsageError
from bitnet.gguf_types import BLOCKS, GGMLType

#: Block types that the `gguf` package decodes.
BLOCK_TYPES = (
    GGMLType.Q4_0,
    GGMLType.Q4_1,
    GGMLType.Q5_0,
    GGMLType.Q5_1,
    GGMLType.Q2_K,
    GGMLType.Q3_K,
    GGMLType.Q4_K,
    GGMLType.Q5_K,
    GGMLType.Q6_K,
    GGMLType.IQ2_XXS,
    GGMLType.IQ2_XS,
    GGMLType.IQ3_XXS,
    GGMLType.IQ1_S,
    GGMLType.IQ4_NL,
    GGMLType.IQ3_S,
    GGMLType.IQ2_S,
    GGMLType.IQ4_XS,
    GGMLType.IQ1_M,
)
_NUMBERS: dict[GGMLType, np.dtype[Any]] = {
    GGMLType.I8: np.dtype("<i1"),
    GGMLType.I16: np.dtype("<i2"),
    GGMLType.I32: np.dtype("<i4"),
    GGMLType.I64: np.dtype("<i8"),
    GGMLType.F64: np.dtype("<f8"),
}
#: Types that no weight can have, and why.
NO_WEIGHTS = {
    GGMLType.Q8_1: "ggml uses it for activations alone",
    GGMLType.Q8_K: "ggml uses it for activations alone",
    GGMLType.I8_S: "bitnet.cpp uses it for activations alone, and it holds no scale",
}


def _codec(type_: GGMLType) -> Codec:
    def decode(raw: Raw, shape: Sequence[int]) -> Float32:
        flat = flat_bytes(type_, raw, shape)
        return (_decode_numbers if type_ in _NUMBERS else _decode_blocks)(type_, flat).reshape(shape)

    def encode(weights: Float32 | Ternary) -> Raw:
        del weights
        raise UsageError(
            f"{type_.name} is read, not written", remedy="write F32, F16, BF16, Q8_0, or one of the ternary types"
        )

    return Codec(type=type_, decode=decode, encode=encode)


def _decode_blocks(type_: GGMLType, flat: Raw) -> Float32:
    from gguf import GGMLQuantizationType  # a tenth of a second, for files that are rare here
    from gguf.quants import dequantize

    blocks = flat.reshape(-1, BLOCKS[type_][1])
    with np.errstate(invalid="ignore", over="ignore"):  # a damaged scale becomes NaN, and is refused below
        values = np.ascontiguousarray(dequantize(blocks, GGMLQuantizationType(int(type_))), np.float32)
    return _finite(type_, values)


def _decode_numbers(type_: GGMLType, flat: Raw) -> Float32:
    values: NDArray[Any] = flat.view(_NUMBERS[type_])
    with np.errstate(over="ignore"):
        out = values.astype(np.float32)
    if type_ in (GGMLType.I32, GGMLType.I64) and np.abs(out).max() > 1 << 24:
        raise ModelFileError(
            f"{type_.name} weights reach {np.abs(out).max():.0f}; float32 holds whole numbers to 2^24",
            remedy="these are no weights of a model, or were converted wrongly",
        )
    return _finite(type_, out)


def _finite(type_: GGMLType, values: Float32) -> Float32:
    if not np.isfinite(values).all():
        raise ModelFileError(
            f"weights of type {type_.name} hold NaN or infinity",
            remedy="the file is damaged; download or convert it again",
        )
    return values


CODECS = tuple(_codec(t) for t in (*BLOCK_TYPES, *_NUMBERS))
