"""I2_S, bitnet.cpp's main format: two bits a weight and one float32 scale a tensor, in three layouts.

Codes 0, 1 and 2 mean −1, 0 and +1; code 3 means nothing, though bitnet.cpp's dot product would count it as +2. A byte
holds four weights, the first in bits 7-6. Which four, depends on the machine that wrote the file:

- `X86`: 128 weights lie in 32 bytes; byte b holds elements b, b + 32, b + 64 and b + 96.
- `ARM`: 64 weights lie in 16 bytes; byte b holds elements b, b + 16, b + 32 and b + 48.
- `ROWS`: byte c of four rows holds column c of each (x86 builds without activation parallelism).

After the codes come the scale and 28 bytes of padding. Nothing in a file names its layout; `bitnet.evidence` finds it.
Kernels take the order of X86, so that the usual file is not even copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from functools import partial

import numpy as np

from bitnet.codecs.base import (
    Codec,
    Codes,
    Float32,
    Raw,
    Ternary,
    Trits,
    check_trits,
    chunks,
    column_group,
    flat_bytes,
    matrix_rows,
    matrix_shape,
    one_scale,
    put_column_group,
    put_scale,
    read_scale,
    row_range,
)
from bitnet.errors import ModelFileError, UsageError
from bitnet.gguf_types import SCALE_TAIL, GGMLType

_TYPE = GGMLType.I2_S
_GROUP = 32  # bytes whose weights are interleaved, and elements from one bit pair to the next
_SHIFTS = (6, 4, 2, 0)
_LOW_BITS = np.uint64(0x5555555555555555)
_SCAN = 1 << 20  # bytes of codes looked at together


class Layout(Enum):
    """Which four weights share a byte."""

    X86 = "x86: 128 weights in 32 bytes"
    ARM = "ARM: 64 weights in 16 bytes"
    ROWS = "4 rows in a byte"


def unpack_i2_s(raw: Raw, shape: Sequence[int], rows: slice | None = None, *, layout: Layout = Layout.X86) -> Ternary:
    """Trits [rows, n_col] and the scale.

    Raises:
        ModelFileError: Wrong size, code 3, or a scale that is not finite.
        UsageError: `ROWS`, and the number of rows is not a multiple of four.
    """
    if layout is Layout.X86:
        codes = matrix_rows(_TYPE, raw, shape, rows)
        check_codes(codes)
        return Ternary(trits=codes_to_trits(codes), scale=read_scale(_TYPE, raw))
    n_row, n_col = _checked_shape(shape, layout)
    wanted = row_range(rows, n_row)
    first, last = wanted.start // 4 * 4, min(n_row, -(-wanted.stop // 4) * 4)  # rows come in fours
    packed = flat_bytes(_TYPE, raw, shape)[first * n_col // 4 : last * n_col // 4]
    check_codes(packed.reshape(last - first, n_col // 4))
    trits = _foreign_trits(packed, last - first, n_col, layout)
    return Ternary(trits=trits[wanted.start - first : wanted.stop - first], scale=read_scale(_TYPE, raw))


def pack_i2_s(trits: Trits, scale: float, *, layout: Layout = Layout.X86) -> Raw:
    """The bytes of a tensor: codes, scale, padding. Raises `UsageError` unless trits are −1, 0 and 1."""
    trits = check_trits(trits, 128)
    _checked_shape(trits.shape, layout)
    raw = np.zeros(trits.size // 4 + SCALE_TAIL, np.uint8)
    put_scale(raw, scale)
    codes = trits_to_codes(trits) if layout is Layout.X86 else _foreign_codes(trits, layout)
    raw[:-SCALE_TAIL] = codes.reshape(-1)
    return raw


def kernel_codes(raw: Raw, shape: Sequence[int], *, layout: Layout = Layout.X86) -> Codes:
    """Checked codes in the order of X86 (a view of `raw` where that is its layout), the scale, and None."""
    n_row, n_col = _checked_shape(shape, layout)
    if layout is Layout.X86:
        codes = matrix_rows(_TYPE, raw, shape)
        check_codes(codes)
        return codes, read_scale(_TYPE, raw), None
    codes = np.empty((n_row, n_col // 4), np.uint8)
    step = 4 * max(1, _SCAN // n_col)
    for begin in range(0, n_row, step):
        part = slice(begin, begin + step)
        codes[part] = trits_to_codes(unpack_i2_s(raw, shape, part, layout=layout).trits)
    return codes, read_scale(_TYPE, raw), None


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
                remedy="the file is damaged: no layout of its type has this code; download or convert it again",
            )


def codec(layout: Layout = Layout.X86) -> Codec:
    """I2_S in a layout."""

    def decode(raw: Raw, shape: Sequence[int]) -> Float32:
        matrix_shape(_TYPE, shape)
        return unpack_i2_s(raw, shape, layout=layout).dense().reshape(shape)

    def encode(weights: Float32 | Ternary) -> Raw:
        return pack_i2_s(*one_scale(weights, _TYPE), layout=layout)

    return Codec(
        type=_TYPE,
        decode=decode,
        encode=encode,
        unpack=partial(unpack_i2_s, layout=layout),
        codes=partial(kernel_codes, layout=layout),
    )


def _checked_shape(shape: Sequence[int], layout: Layout) -> tuple[int, int]:
    n_row, n_col = matrix_shape(_TYPE, shape)
    if layout is Layout.ROWS and n_row % 4:
        raise UsageError(f"{n_row} rows are not a multiple of 4", remedy="use the layout of x86")
    return n_row, n_col


def _foreign_trits(packed: Raw, n_row: int, n_col: int, layout: Layout) -> Trits:
    planes = np.stack([(packed >> shift) & 3 for shift in _SHIFTS]).view(np.int8)
    planes -= 1
    width = n_col if layout is Layout.ROWS else 16
    return np.ascontiguousarray(planes.reshape(4, len(packed) // width, width).transpose(1, 0, 2)).reshape(n_row, n_col)


def _foreign_codes(trits: Trits, layout: Layout) -> Raw:
    width = trits.shape[1] if layout is Layout.ROWS else 16
    digits = (trits + np.int8(1)).view(np.uint8).reshape(-1, 4, width)
    packed = digits[:, 0].copy()
    for i in range(1, 4):
        packed <<= 2
        packed |= digits[:, i]
    return packed


CODEC = codec()
