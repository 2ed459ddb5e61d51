"""Weights as the oracle reads them: straight from the formats' specifications, by its own plain code.

An independent witness must not decode with the engine's codecs. I2_S is written here from its layout, TL1 and TL2 in
`tables`; TQ1_0, TQ2_0 and Q8_0 are left to the `gguf` package; F32, F16 and BF16 are views. Ternary tensors come out as
small integers with their scales beside them, so that products with int8 activations can be exact. Of a tensor that is
a view nothing is copied: a head of float16 stays in the file, and its rows are widened as they are multiplied.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray

from bitnet.gguf import GGUF
from reference import tables
from reference.rounding import float_type
from reference.runner import ReferenceUnavailableError, Rows, span
from reference.semantics import Semantics, WeightChange

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Float16 = NDArray[np.float16]

#: Bytes after the packed codes of an I2_S tensor: a float32 scale and padding.
_I2_S_TAIL = 32
_TQ_BLOCK = 256
_TQ_BYTES = {"TQ1_0": 54, "TQ2_0": 66}
#: float16 1.0: replaces a block's scale, so that the decoder of the `gguf` package returns the bare trits.
_F16_ONE = np.array([0x00, 0x3C], np.uint8)
#: Rows widened to float64 at a time, so that a large model does not need eight times its size.
_ROWS_AT_ONCE = 8192


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Matrix:
    """One weight matrix.

    Attributes:
        values: [rows, columns]; integers of a ternary type, or the dense weights.
        ternary: Whether `values` are integers that an exact sum is due for.
        block_scale: [rows, columns / 256] where blocks have different scales.
        scale: The tensor's own scale (1 if it has none).
        extra_scale: Of its `.scale` tensor.
    """

    values: NDArray[np.int8] | Float16 | Float32 | Float64
    ternary: bool
    block_scale: Float32 | None = None
    scale: np.float32
    extra_scale: np.float32 | None = None

    def product(self, x: Float64) -> Float64:
        """x: [T, columns] → [T, rows] in float64, without `scale` and `extra_scale`. Exact for integers."""
        parts = []
        for start in range(0, len(self.values), _ROWS_AT_ONCE):
            w = self.values[start : start + _ROWS_AT_ONCE].astype(np.float64, copy=False)
            if self.block_scale is not None:
                w = w * np.repeat(self.block_scale[start : start + _ROWS_AT_ONCE].astype(np.float64), _TQ_BLOCK, axis=1)
            parts.append(x @ w.T)
        return np.concatenate(parts, axis=-1)

    def product_of_squares(self, x: Float64) -> Float64:
        """The sum of (weight · x)², without any scale. x: [T, columns] → [T, rows]."""
        parts, squared = [], np.square(x)
        for start in range(0, len(self.values), _ROWS_AT_ONCE):
            w = np.square(self.values[start : start + _ROWS_AT_ONCE].astype(np.float32))
            parts.append(squared @ w.astype(np.float64).T)
        return np.concatenate(parts, axis=-1)

    def scaled(self, y: Float32, semantics: Semantics) -> Float32:
        """A product times the scales, each multiplication rounded to float32 as engines do."""
        for scale in (self.scale, self.extra_scale):
            if scale is not None:
                y = apply_scale(y, scale, semantics)
        return y

    def dense(self, semantics: Semantics, rows: Rows = None) -> Float32:
        """The weights, or some rows of them, with the tensor's own scales, without `extra_scale`."""
        some = span(rows)
        w = self.values[some].astype(np.float32)
        if self.block_scale is not None:
            w = w * np.repeat(self.block_scale[some], _TQ_BLOCK, axis=1)
        return apply_scale(w, self.scale, semantics) if self.ternary else w


def apply_scale(y: Float32, scale: np.float32, semantics: Semantics) -> Float32:
    """The product y · scale, or what a defect makes of it."""
    if semantics.weight_scale == "drop":
        return y
    if semantics.scale_type != "f32":
        scale = float_type(np.array([scale]), semantics.scale_type)[0]
    if semantics.weight_scale == "divide":
        return y / scale
    return y * scale * scale if semantics.weight_scale == "twice" else y * scale


def decode(gguf: GGUF, name: str, semantics: Semantics, *, wide: bool = False) -> Matrix:
    """One tensor of a container; its `.scale` tensor is found by name.

    Args:
        gguf: The open container.
        name: Of the tensor, `….weight`.
        semantics: How codes, order and scales are understood.
        wide: Keep float64 values, which costs memory and saves a conversion per product.

    Raises:
        ReferenceUnavailableError: The type has no plain decoder here, or the file breaks the type's rules.
    """
    for change in semantics.weights:
        if change.tensor == name:
            rest = tuple(c for c in semantics.weights if c is not change)
            return _changed(gguf, change, replace(semantics, weights=rest), wide=wide)
    info = gguf.tensors[name]
    rows, columns = int(np.prod(info.shape[:-1])), info.shape[-1]
    raw = gguf.raw(name)
    kind = info.type.name
    extra = name.removesuffix(".weight") + ".scale"
    extra_scale = np.float32(gguf.raw(extra).view("<f4")[0]) if extra in gguf.tensors and extra != name else None
    scale, block_scale = np.float32(1), None
    values: NDArray[np.int8] | Float16 | Float32 | Float64
    if kind == "I2_S":
        if columns % 128:
            raise ReferenceUnavailableError(f"{name}: I2_S needs rows of a multiple of 128, not {columns}")
        codes = unpack_i2_s(raw[: rows * columns // 4], semantics.unpack_order)
        values = _weights_of(codes, semantics, name).reshape(rows, columns)
        scale = np.float32(raw[-_I2_S_TAIL : -_I2_S_TAIL + 4].view("<f4")[0])
    elif kind in ("TL1", "TL2"):
        read = tables.tl1 if kind == "TL1" else tables.tl2
        trits, scale = read(raw, rows, columns, tables.tiling(gguf, rows, columns))
        values = _weights_of(trits + 1, semantics, name)
    elif kind in _TQ_BYTES:
        trits, block_scale = _decode_tq(raw, kind, rows, columns)
        values = _weights_of(trits + 1, semantics, name)
        if (block_scale == block_scale.flat[0]).all():
            scale, block_scale = np.float32(block_scale.flat[0]), None
    else:
        values = _decode_dense(raw, kind, name).reshape(rows, columns)
    ternary = values.dtype == np.int8
    if semantics.reternarised and ternary and block_scale is None:
        mean = np.abs(values).mean() * scale
        values = np.clip(np.rint(values * scale / mean), -1, 1).astype(np.int8)
        scale = np.float32(mean)
    if wide:
        values = values.astype(np.float64)
    return Matrix(values=values, ternary=ternary, block_scale=block_scale, scale=scale, extra_scale=extra_scale)


def _changed(gguf: GGUF, change: WeightChange, semantics: Semantics, *, wide: bool) -> Matrix:
    """One tensor that is not what the file says; `semantics` holds the other changes."""
    if change.kind == "other":
        if change.other not in gguf.tensors or gguf.tensors[change.other].shape != gguf.tensors[change.tensor].shape:
            raise ReferenceUnavailableError(f"{change.other} cannot stand for {change.tensor}")
        return decode(gguf, change.other, replace(semantics, weights=()), wide=wide)
    matrix = decode(gguf, change.tensor, semantics, wide=wide)
    w: NDArray[Any] = matrix.values if matrix.values.dtype != np.float16 else matrix.values.astype(np.float32)
    if change.kind == "scaled":
        if matrix.ternary:
            return replace(matrix, scale=np.float32(matrix.scale * np.float32(change.factor)))
        return replace(matrix, values=(w * np.float32(change.factor)).astype(w.dtype))
    if change.kind == "transposed" and (w.shape[0] != w.shape[1] or matrix.block_scale is not None):
        raise ReferenceUnavailableError(f"{change.tensor} is not square")
    if change.kind == "rows" and len(change.order) != len(w):
        raise ReferenceUnavailableError(f"{change.tensor} has {len(w)} rows, the order {len(change.order)}")
    if change.kind == "rows":
        order = np.array(change.order)
        scales = None if matrix.block_scale is None else matrix.block_scale[order]
        return replace(matrix, values=w[order], block_scale=scales)
    if change.kind == "transposed":
        return replace(matrix, values=w.T.copy())
    return replace(matrix, values=np.asarray(w * (0 if change.kind == "zero" else -1), w.dtype))


def unpack_i2_s(packed: NDArray[np.uint8], order: str) -> NDArray[np.uint8]:
    """The two-bit codes of I2_S, flat, in element order.

    The x86 layout puts 128 elements in 32 bytes: byte b holds elements b, b + 32, b + 64 and b + 96 in bits 7-6, 5-4,
    3-2 and 1-0. The other orders are the ways engines have misread it.
    """
    fields = np.stack([(packed >> shift) & 3 for shift in (6, 4, 2, 0)])  # [4, n_bytes]
    if order == "sequential":
        return fields.T.reshape(-1)
    if order == "sequential_reversed":
        return fields[::-1].T.reshape(-1)
    group = 32 if order == "interleaved" else 16
    return fields.reshape(4, -1, group).transpose(1, 0, 2).reshape(-1)


def _weights_of(codes: NDArray[np.integer], semantics: Semantics, name: str) -> NDArray[np.int8]:
    if semantics.code_map[3] is None and (codes == 3).any():
        raise ReferenceUnavailableError(
            f"{name}: {int((codes == 3).sum())} codes are 3, which no ternary weight has",
            remedy="the file is damaged or packed in another layout",
        )
    weights: NDArray[np.int8] = np.array([0 if c is None else c for c in semantics.code_map], np.int8)[codes]
    return weights


def _decode_tq(raw: NDArray[np.uint8], kind: str, rows: int, columns: int) -> tuple[NDArray[np.int8], Float32]:
    blocks = raw.reshape(-1, _TQ_BYTES[kind]).copy()
    block_scale = blocks[:, -2:].copy().view("<f2").astype(np.float32).reshape(rows, columns // _TQ_BLOCK)
    blocks[:, -2:] = _F16_ONE
    trits = quants.dequantize(blocks, GGMLQuantizationType[kind])
    return trits.reshape(rows, columns).astype(np.int8), block_scale


def _decode_dense(raw: NDArray[np.uint8], kind: str, name: str) -> Float16 | Float32:
    if kind == "F32":
        return raw.view("<f4").astype(np.float32, copy=False)
    if kind == "F16":
        return raw.view("<f2").astype(np.float16, copy=False)
    if kind == "BF16":
        return (raw.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    if kind == "Q8_0":
        decoded: Float32 = quants.dequantize(raw.reshape(-1, 34), GGMLQuantizationType.Q8_0)
        return decoded.astype(np.float32)
    raise ReferenceUnavailableError(
        f"{name}: the oracle has no plain decoder for {kind}",
        remedy="it reads I2_S, TL1, TL2, TQ1_0, TQ2_0, Q8_0, F32, F16 and BF16",
    )
