"""Tensors of a checkpoint turned into what a GGUF holds, a few rows at a time.

Each class stands for one tensor of the GGUF to be and makes its bytes on demand; every fault names the file and the
tensor it was found in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.codecs.base import chunks
from bitnet.codecs.i2_s import trits_to_codes
from bitnet.errors import ModelFileError
from bitnet.gguf_types import SCALE_TAIL, GGMLType
from bitnet.hf_config import LinearClass
from bitnet.master_weights import Float32, Rows, Trits, as_float32, ternarise
from bitnet.safetensors_file import Entry, Shards

DTYPES = {"F32": GGMLType.F32, "F16": GGMLType.F16, "BF16": GGMLType.BF16}
_CHECKED = 1 << 22  # elements looked at together
ROWS_OF_A_CODE = 4  # rows that share a byte in packed weights
_STORED: dict[str, type[np.generic]] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "U8": np.uint8}
_DAMAGED = "the checkpoint is damaged or was made for another engine; download it again"


def fault(entry: Entry, what: str, remedy: str | None = _DAMAGED) -> ModelFileError:
    """An error about one tensor."""
    return ModelFileError(f"tensor {entry.name} {what}", where=entry.file, remedy=remedy)


def wrong_type(entry: Entry, due: str = "F32, F16 or BF16") -> ModelFileError:
    """An error about a tensor of a type that this engine does not read."""
    return fault(entry, f"has type {entry.dtype}; {due} is due", f"save the checkpoint with this tensor as {due}")


def stored(shards: Shards, entry: Entry) -> NDArray[Any]:
    """A tensor as it lies in its file, bfloat16 as uint16; copied only where it is not aligned."""
    if entry.dtype not in _STORED:
        raise wrong_type(entry, "F32, F16, BF16 or packed U8")
    raw = shards.raw(entry.name)
    dtype = np.dtype(_STORED[entry.dtype])
    aligned = raw if raw.ctypes.data % dtype.itemsize == 0 else raw.copy()
    return aligned.view(dtype).reshape(entry.shape)


def vector(shards: Shards, entry: Entry) -> Float32:
    """A small tensor as float32. Raises `ModelFileError` for NaN and infinity."""
    if entry.dtype not in DTYPES:
        raise wrong_type(entry)
    value = as_float32(stored(shards, entry))
    if not np.isfinite(value).all():
        raise fault(entry, "holds NaN or infinity")
    return value


@dataclass(frozen=True, kw_only=True)
class Dense:
    """A float matrix, in the file's type.

    Attributes:
        order: Row of the file for each row, or None where they are the same.
    """

    shards: Shards
    entry: Entry
    order: Rows | None = None

    def raw(self) -> NDArray[np.uint8]:
        """Its bytes. Raises `ModelFileError` for NaN and infinity."""
        values = stored(self.shards, self.entry)
        exponent = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}[self.entry.dtype]
        bits: NDArray[Any] = values.view(f"u{values.itemsize}")
        step = max(1, _CHECKED // self.entry.shape[1])
        for begin in range(0, len(bits), step):
            if ((bits[begin : begin + step] & exponent) == exponent).any():
                raise fault(self.entry, "holds NaN or infinity")
            self.shards.release()
        ordered = values if self.order is None else values[self.order]
        return ordered.reshape(-1).view(np.uint8)


@dataclass(frozen=True, kw_only=True)
class Ternary:
    """A ternary matrix, however it is stored.

    Attributes:
        entry: Packed [n_row / 4, n_col] uint8, or floats [n_row, n_col].
        shape: (n_row, n_col).
        scale_entry: `weight_scale`, or None.
        linear_class: Whether `weight_scale` divides or multiplies.
        master: Whether floats of more than one magnitude are master weights; if not, they are a fault.
        order: As for `Dense`.
    """

    shards: Shards
    entry: Entry
    shape: tuple[int, int]
    scale_entry: Entry | None
    linear_class: LinearClass
    master: bool
    order: Rows

    def raw(self) -> NDArray[np.uint8]:
        """I2_S: codes, scale, padding."""
        n_row, n_col = self.shape
        out = np.zeros(n_row * n_col // 4 + SCALE_TAIL, np.uint8)
        codes = out[:-SCALE_TAIL].reshape(n_row, n_col // 4)
        self._rows(lambda part, trits: codes.__setitem__(part, trits_to_codes(trits)))
        out[-SCALE_TAIL:][:4] = np.array([self.scale], "<f4").view(np.uint8)
        return out

    def raw_f16(self) -> NDArray[np.uint8]:
        """The trits as float16, for rows that are no multiple of what I2_S takes; the scale is another tensor."""
        out = np.empty(self.shape, np.float16)
        self._rows(lambda part, trits: out.__setitem__(part, trits))
        return out.reshape(-1).view(np.uint8)

    def raw_scale(self) -> NDArray[np.uint8]:
        """The scale as a tensor of one float32."""
        return np.array([self.scale], "<f4").view(np.uint8)

    @property
    def scale(self) -> np.float32:
        """What a trit is multiplied by."""
        return self._reading[0]

    @property
    def ternarised(self) -> bool:
        """Whether the file holds master weights, so that ternarising them lost something."""
        return self._reading[2]

    def _rows(self, put: Callable[[slice, Trits], None]) -> None:
        trits = self._reading[1]
        for part in chunks(*self.shape):
            put(part, trits(self.order[part]))

    @cached_property
    def _reading(self) -> tuple[np.float32, Callable[[Rows], Trits], bool]:
        """The scale, the trits of given rows of the file, and whether they were made from master weights."""
        values = stored(self.shards, self.entry)
        if self.entry.dtype == "U8":
            factor, ternarised = np.float32(1), False
            read: Callable[[Rows], Trits] = self._unpack
        else:
            found = ternarise(values)
            if found is None:
                raise fault(self.entry, "holds NaN or infinity")
            if not found.exact and not self.master:
                raise fault(
                    self.entry,
                    "is declared to be ternary, but has more than one magnitude, or none",
                    "the configuration may belong to another checkpoint, or its quantization_mode should be online",
                )
            factor, read, ternarised = found.scale, found.trits, not found.exact
        if self.scale_entry is not None:
            given = vector(self.shards, self.scale_entry).reshape(-1)[0]
            if not given > 0:
                raise fault(self.scale_entry, f"is {given:g}; a scale must be positive")
            with np.errstate(over="ignore", divide="ignore"):
                factor = factor * given if self.linear_class == "autobitlinear" else factor / given
        if not np.isfinite(factor) or factor == 0:
            raise fault(self.scale_entry or self.entry, f"gives a scale of {factor:g}")
        return np.float32(factor), read, ternarised

    def _unpack(self, rows: Rows) -> Trits:
        packed = stored(self.shards, self.entry)
        quarter = len(packed)
        shift = (rows // quarter * 2).astype(np.uint8)
        codes = (packed[rows % quarter] >> shift[:, None]) & np.uint8(3)
        if (codes == 3).any():
            row, column = (int(i[0]) for i in np.nonzero(codes == 3))
            raise fault(self.entry, f"has code 3 at row {rows[row]}, column {column}, which is no ternary weight")
        codes -= np.uint8(1)  # 0 − 1 wraps to 255, which is −1 as int8
        return codes.view(np.int8)
