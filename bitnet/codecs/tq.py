"""TQ1_0 and TQ2_0, ggml's ternary formats: blocks of 256 weights with a float16 scale.

TQ2_0 (66 bytes) has two bits a weight: in each 32 bytes, byte b holds elements b, b + 32, b + 64 and b + 96 from the
low bits up, that is I2_S with its bit pairs reversed. Then the scale.

TQ1_0 (54 bytes) has five weights in a byte: their base-3 number, v, stored as ceil(v × 256 / 243), so that multiplying
by 3^i and keeping eight bits leaves weight i as the integer part of three times the rest. 32 bytes hold elements
0–159 (i-th digits: 32 i …), 16 bytes 160–239, 4 bytes of four weights 240–255. Then the scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from bitnet.codecs.base import (
    BLOCK_SCALE,
    Codec,
    Codes,
    Float32,
    Raw,
    Ternary,
    Trits,
    check_finite,
    check_trits,
    chunks,
    column_group,
    matrix_rows,
    put_column_group,
    to_float16,
)
from bitnet.codecs.i2_s import check_codes, codes_to_trits, trits_to_codes
from bitnet.errors import ModelFileError, UsageError
from bitnet.gguf_types import GGMLType

_TQ2_BYTES, _TQ1_BYTES = 64, 52  # of a block, before its scale
#: TQ1_0's parts: first byte, bytes, weights a byte, first element.
_TQ1_PARTS = ((0, 32, 5, 0), (32, 16, 5, 160), (48, 4, 4, 240))
_BYTE_OF_NUMBER = ((np.arange(243) * 256 + 242) // 243).astype(np.uint8)


def tq2_0_codes(raw: Raw, shape: Sequence[int]) -> tuple[Raw, Float32]:
    """Codes in I2_S order [n_row, n_col / 4] and block scales [n_row, n_col / 256].

    Raises:
        ModelFileError: Wrong size, code 3, or a scale that is not finite.
    """
    blocks = _blocks(GGMLType.TQ2_0, raw, shape, None)
    return _tq2_0_codes(blocks), _read_scales(blocks)


def tq1_0_codes(raw: Raw, shape: Sequence[int]) -> tuple[Raw, Float32]:
    """Codes in I2_S order [n_row, n_col / 4] and block scales [n_row, n_col / 256], likewise."""
    blocks = _blocks(GGMLType.TQ1_0, raw, shape, None)
    n_row, n_block = blocks.shape[:2]
    codes = np.empty((n_row, n_block * _TQ2_BYTES), np.uint8)
    for part in chunks(n_row, n_block * BLOCK_SCALE):
        codes[part] = trits_to_codes(_tq1_0_trits(blocks[part]))
    return codes, _read_scales(blocks)


def unpack_tq2_0(raw: Raw, shape: Sequence[int], rows: slice | None = None) -> Ternary:
    """Trits [rows, n_col] and block scales [rows, n_col / 256].

    Raises:
        ModelFileError: Wrong size, code 3, or a scale that is not finite.
    """
    blocks = _blocks(GGMLType.TQ2_0, raw, shape, rows)
    return Ternary(trits=codes_to_trits(_tq2_0_codes(blocks)), block_scale=_read_scales(blocks))


def unpack_tq1_0(raw: Raw, shape: Sequence[int], rows: slice | None = None) -> Ternary:
    """Trits [rows, n_col] and block scales [rows, n_col / 256]. Raises `ModelFileError` likewise."""
    blocks = _blocks(GGMLType.TQ1_0, raw, shape, rows)
    return Ternary(trits=_tq1_0_trits(blocks), block_scale=_read_scales(blocks))


def pack_tq2_0(trits: Trits, scale: float | Float32 = 1.0) -> Raw:
    """Bytes of a tensor.

    Args:
        trits: [n_row, n_col] int8, n_col a multiple of 256.
        scale: One for all blocks, or [n_row, n_col / 256]; each must be a float16 exactly.

    Raises:
        UsageError: Trits are not −1, 0 and 1, or float16 cannot hold a scale.
    """
    trits = check_trits(trits, BLOCK_SCALE)
    raw = _with_scales(trits, _TQ2_BYTES, scale)
    for part in chunks(*trits.shape):
        codes = trits_to_codes(trits[part])
        raw[part, :, :_TQ2_BYTES] = _reverse_pairs(codes).reshape(len(codes), -1, _TQ2_BYTES)
    return raw.reshape(-1)


def pack_tq1_0(trits: Trits, scale: float | Float32 = 1.0) -> Raw:
    """Bytes of a tensor; arguments and errors as for `pack_tq2_0`."""
    trits = check_trits(trits, BLOCK_SCALE)
    raw = _with_scales(trits, _TQ1_BYTES, scale)
    for part in chunks(*trits.shape):
        digits = (trits[part] + np.int8(1)).view(np.uint8).reshape(-1, BLOCK_SCALE)
        out = raw[part].reshape(len(digits), -1)
        for first, width, n, element in _TQ1_PARTS:
            number = column_group(digits, element, width)
            for i in range(1, n):
                number *= 3
                number += column_group(digits, element + i * width, width)
            number *= 3 ** (5 - n)
            out[:, first : first + width] = _BYTE_OF_NUMBER[number]
    return raw.reshape(-1)


def _blocks(type_: GGMLType, raw: Raw, shape: Sequence[int], rows: slice | None) -> Raw:
    """[rows, blocks of a row, bytes of a block], without copying."""
    flat = matrix_rows(type_, raw, shape, rows)
    n_block = shape[-1] // BLOCK_SCALE
    return flat.reshape(len(flat), n_block, flat.shape[1] // n_block)


def _read_scales(blocks: Raw) -> Float32:
    scales = np.ascontiguousarray(blocks[..., -2:]).view("<f2")[..., 0].astype(np.float32)
    if not np.isfinite(scales).all():
        row, block = (int(i[0]) for i in np.nonzero(~np.isfinite(scales)))
        raise ModelFileError(
            f"the scale of block {block} of row {row} is {scales[row, block]}",
            remedy="the file is damaged; download or convert it again",
        )
    return scales


def _with_scales(trits: Trits, code_bytes: int, scale: float | Float32) -> Raw:
    """Blocks [n_row, blocks of a row, bytes of a block] with their scales in place."""
    grid = (trits.shape[0], trits.shape[1] // BLOCK_SCALE)
    given = np.asarray(scale, np.float32)
    if given.shape not in ((), grid):
        raise UsageError(f"block scales are {list(given.shape)}", remedy=f"give one, or {list(grid)}")
    if not np.isfinite(given).all():
        raise UsageError("a block scale is NaN or infinite", remedy="look for the fault where it was made")
    halves = to_float16(given, "a block scale")
    if not np.array_equal(halves.astype(np.float32), given):
        raise UsageError(
            "a block scale is not a float16, so packing would change the weights",
            remedy="use block scale 1 and a `.scale` tensor",
        )
    raw = np.empty((*grid, code_bytes + 2), np.uint8)
    raw[..., code_bytes:].view("<f2")[..., 0] = halves
    return raw


def _reverse_pairs(codes: Raw) -> Raw:
    """The four bit pairs of every byte in the other order, eight bytes at a time."""
    x = np.ascontiguousarray(codes).view(np.uint64)
    outer, inner = np.uint64(0x0303030303030303), np.uint64(0x0C0C0C0C0C0C0C0C)
    out = (x & outer) << np.uint64(6)
    out |= (x & inner) << np.uint64(2)
    out |= (x >> np.uint64(2)) & inner
    out |= (x >> np.uint64(6)) & outer
    return out.view(np.uint8)


def _tq2_0_codes(blocks: Raw) -> Raw:
    """Checked codes in I2_S order, [n_row, n_col / 4]."""
    n_row, n_block = blocks.shape[:2]
    codes = np.empty((n_row, n_block * _TQ2_BYTES), np.uint8)
    for part in chunks(n_row, n_block * BLOCK_SCALE):
        packed = np.ascontiguousarray(blocks[part, :, :_TQ2_BYTES])
        codes[part] = _reverse_pairs(packed.reshape(len(packed), -1))
    check_codes(codes)
    return codes


def _tq1_0_trits(blocks: Raw) -> Trits:
    n_row, n_block = blocks.shape[:2]
    trits = np.empty((n_row, n_block * BLOCK_SCALE), np.int8)
    for part in chunks(n_row, n_block * BLOCK_SCALE):
        out = trits[part].reshape(-1, BLOCK_SCALE)
        for first, width, n, element in _TQ1_PARTS:
            packed = np.ascontiguousarray(blocks[part, :, first : first + width]).reshape(-1, width)
            for i, digit in enumerate(_digits(packed, n)):
                put_column_group(out, element + i * width, digit)
    return trits


def _digits(packed: Raw, n: int) -> Iterator[Trits]:
    """The first n base-3 digits of bytes, less one: three times a fraction of 256 passes 1 at 86, and 2 at 171."""
    rest = packed.copy()
    for _ in range(n):
        digit = (rest >= 86).view(np.int8) + (rest >= 171).view(np.int8)
        digit -= 1
        yield digit
        rest *= 3


def _quantise(weights: Float32) -> tuple[Trits, Float32]:
    """As ggml does: the largest magnitude of a block is its scale, and half of it or more is not zero."""
    dense = check_finite(weights)
    if dense.shape[1] % BLOCK_SCALE:
        raise UsageError(f"rows of {dense.shape[1]} are not a multiple of {BLOCK_SCALE}")
    blocks = dense.reshape(len(dense), -1, BLOCK_SCALE)
    scales = np.abs(blocks).max(-1)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(scales == 0, np.float32(0), np.float32(1) / scales)
    inverse[np.isinf(inverse)] = 0  # a subnormal largest magnitude: its float16 is 0 too
    scaled = blocks * inverse[..., None]
    trits = np.sign(scaled).astype(np.int8) * (np.abs(scaled) >= 0.5)
    return trits.reshape(dense.shape), to_float16(scales, "a weight").astype(np.float32)


def _encode(weights: Float32 | Ternary, *, one: bool) -> Raw:
    pack = pack_tq1_0 if one else pack_tq2_0
    if isinstance(weights, Ternary):
        if weights.block_scale is not None and weights.scale not in (None, 1.0):
            raise UsageError("TQ formats hold no scale beside the blocks'", remedy="write it as a `.scale` tensor")
        scale = weights.scale if weights.block_scale is None else weights.block_scale
        return pack(weights.trits, 1.0 if scale is None else scale)
    return pack(*_quantise(weights))


def _with_unit_scale(found: tuple[Raw, Float32]) -> Codes:
    return found[0], 1.0, found[1]


TQ1_0 = Codec(
    type=GGMLType.TQ1_0,
    decode=lambda raw, shape: unpack_tq1_0(raw, shape).dense().reshape(shape),
    encode=lambda weights: _encode(weights, one=True),
    unpack=unpack_tq1_0,
    codes=lambda raw, shape: _with_unit_scale(tq1_0_codes(raw, shape)),
)
TQ2_0 = Codec(
    type=GGMLType.TQ2_0,
    decode=lambda raw, shape: unpack_tq2_0(raw, shape).dense().reshape(shape),
    encode=lambda weights: _encode(weights, one=False),
    unpack=unpack_tq2_0,
    codes=lambda raw, shape: _with_unit_scale(tq2_0_codes(raw, shape)),
)
