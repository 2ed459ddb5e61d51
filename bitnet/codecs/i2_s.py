"""I2_S, bitnet.cpp's main format in its x86 layout: two bits a weight and one float32 scale a tensor.

128 weights lie in 32 bytes: byte b holds elements b, b + 32, b + 64 and b + 96 in bits 7-6, 5-4, 3-2 and 1-0.
Codes 0, 1 and 2 mean −1, 0 and +1; code 3 means nothing, though bitnet.cpp's dot product would count it as +2.
After the codes come the scale and 28 bytes of padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bitnet.codecs.base import (
    Codec,
    Float32,
    Raw,
    Ternary,
    Trits,
    check_finite,
    check_trits,
    chunks,
    column_group,
    matrix_rows,
    matrix_shape,
    put_column_group,
)
from bitnet.errors import ModelFileError, UsageError
from bitnet.gguf_types import SCALE_TAIL, GGMLType

_TYPE = GGMLType.I2_S
_GROUP = 32  # bytes whose weights are interleaved, and elements from one bit pair to the next
_SHIFTS = (6, 4, 2, 0)
_LOW_BITS = np.uint64(0x5555555555555555)
_SCAN = 1 << 20  # bytes of codes looked at together


def unpack_i2_s(raw: Raw, shape: Sequence[int], rows: slice | None = None) -> Ternary:
    """Trits [rows, n_col] and the scale.

    Raises:
        ModelFileError: Wrong size, code 3, or a scale that is not finite.
    """
    codes = matrix_rows(_TYPE, raw, shape, rows)
    check_codes(codes)
    return Ternary(trits=codes_to_trits(codes), scale=read_scale(raw))


def pack_i2_s(trits: Trits, scale: float) -> Raw:
    """The bytes of a tensor: codes, scale, padding. Raises `UsageError` unless trits are −1, 0 and 1."""
    trits = check_trits(trits, 128)
    stored = np.float32(scale)
    if not np.isfinite(stored):
        raise UsageError(f"the scale is {scale}", remedy="look for the fault where it was made")
    raw = np.zeros(trits.size // 4 + SCALE_TAIL, np.uint8)
    raw[:-SCALE_TAIL] = trits_to_codes(trits).reshape(-1)
    raw[-SCALE_TAIL:][:4] = np.frombuffer(stored.astype("<f4").tobytes(), np.uint8)
    return raw


def read_scale(raw: Raw) -> float:
    """The scale in the tail of a tensor. Raises `ModelFileError` where it is not finite."""
    scale = float(np.frombuffer(np.ascontiguousarray(raw).reshape(-1)[-SCALE_TAIL:][:4].tobytes(), "<f4")[0])
    if not np.isfinite(scale):
        raise ModelFileError(
            f"the scale of an I2_S tensor is {scale}", remedy="the file is damaged; download or convert it again"
        )
    return scale


def codes_to_trits(codes: Raw) -> Trits:
    """Codes [n_row, n_col / 4] to trits [n_row, n_col] int8; codes are not checked."""
    n_row, n_col = codes.shape[0], codes.shape[1] * 4
    trits = np.empty((n_row, n_col), np.int8)
    for part in chunks(n_row, n_col):
        packed = np.ascontiguousarray(codes[part]).reshape(-1, _GROUP)
        out = trits[part].reshape(-1, 4 * _GROUP)
        for i, shift in enumerate(_SHIFTS):
            plane = (packed >> shift) & 3
            plane -= 1
            put_column_group(out, i * _GROUP, plane.view(np.int8))
    return trits


def trits_to_codes(trits: Trits) -> Raw:
    """Trits [n_row, n_col] int8 to codes [n_row, n_col / 4]; trits are not checked."""
    n_row, n_col = trits.shape
    codes = np.empty((n_row, n_col // 4), np.uint8)
    for part in chunks(n_row, n_col):
        digits = (trits[part] + np.int8(1)).view(np.uint8).reshape(-1, 4 * _GROUP)
        packed = np.zeros((len(digits), _GROUP), np.uint8)
        for i, shift in enumerate(_SHIFTS):
            packed |= column_group(digits, i * _GROUP, _GROUP) << shift
        codes[part] = packed.reshape(-1, n_col // 4)
    return codes


def check_codes(codes: Raw) -> None:
    """Refuse code 3 anywhere in codes [n_row, n_col / 4]. Raises `ModelFileError` naming the first element."""
    flat = np.ascontiguousarray(codes).reshape(-1)
    for begin in range(0, len(flat), _SCAN):
        part = flat[begin : begin + _SCAN]
        words = part.view(np.uint64)
        if (words & (words >> np.uint64(1)) & _LOW_BITS).any():
            element = begin * 4 + int((codes_to_trits(part[None]) == 2).argmax())
            row, col = divmod(element, codes.shape[1] * 4)
            raise ModelFileError(
                f"code 3 at element {element} (row {row}, column {col}), which is no ternary weight",
                remedy="the file is damaged, or packed in another layout of its type (ARM, or 4 rows a byte)",
            )


def decode(raw: Raw, shape: Sequence[int]) -> Float32:
    """Weights of `shape`, f32."""
    matrix_shape(_TYPE, shape)
    return unpack_i2_s(raw, shape).dense().reshape(shape)


def encode(weights: Float32 | Ternary) -> Raw:
    """Bytes of a matrix that is ternary already. Raises `UsageError` where it has more than one magnitude."""
    if isinstance(weights, Ternary):
        if weights.block_scale is not None:
            raise UsageError("I2_S has one scale a tensor, not one a block", remedy="use TQ2_0 or TQ1_0")
        return pack_i2_s(weights.trits, 1.0 if weights.scale is None else weights.scale)
    dense = check_finite(weights)
    scale = float(np.abs(dense).max())
    trits = np.sign(dense).astype(np.int8)
    if not np.array_equal(np.abs(dense), np.abs(trits) * np.float32(scale)):
        raise UsageError(
            "the matrix is not ternary: it has more than one magnitude",
            remedy="quantise it first: scale = mean|w|, trit = clip(round(w / scale), -1, 1)",
        )
    return pack_i2_s(trits, scale)


CODEC = Codec(type=_TYPE, decode=decode, encode=encode, unpack=unpack_i2_s)
