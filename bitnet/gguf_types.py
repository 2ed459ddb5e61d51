"""The vocabulary of the GGUF container: types, sizes, limits, and the records a reader gives and a writer takes.

The same type number means different things in different engines. This table reads 36–39 as bitnet.cpp does;
`gguf_layout` decides whether a given file may be read that way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

MAGIC = b"GGUF"
VERSION = 3  # written; 2 has the same layout and is read too
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20
MAX_HEADER = 256 << 20  # bytes
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 16
MAX_STRING = 16 << 20  # bytes
MAX_ARRAY = 16 << 20  # elements
MAX_KEY = 65_535  # bytes
MAX_NAME = 64  # bytes
MAX_DIMS = 4
MAX_DEPTH = 4  # of nested arrays
MAX_INT64 = (1 << 63) - 1
MAX_PARSE_SECONDS = 5.0  # of CPU time
MEMORY_FACTOR = 4  # bytes of memory a byte of header may cost
SCALE_TAIL = 32  # bytes after bitnet.cpp's codes: one float32 scale and 28 of padding


class GGMLType(IntEnum):
    """Tensor types that can be named in a file this engine opens."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    I2_S = 36
    I8_S = 37
    TL1 = 38
    TL2 = 39


class ValueType(IntEnum):
    """Types of metadata values."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


#: Little-endian numpy type of every value that is a number. A bool is one byte, 0 or 1.
NUMBERS: dict[ValueType, np.dtype[Any]] = {
    ValueType.UINT8: np.dtype("<u1"),
    ValueType.INT8: np.dtype("<i1"),
    ValueType.UINT16: np.dtype("<u2"),
    ValueType.INT16: np.dtype("<i2"),
    ValueType.UINT32: np.dtype("<u4"),
    ValueType.INT32: np.dtype("<i4"),
    ValueType.FLOAT32: np.dtype("<f4"),
    ValueType.BOOL: np.dtype("?"),
    ValueType.UINT64: np.dtype("<u8"),
    ValueType.INT64: np.dtype("<i8"),
    ValueType.FLOAT64: np.dtype("<f8"),
}

#: Elements and bytes of a block. bitnet.cpp's types have their own formulas in `tensor_bytes`;
#: their first number is what a row must be a multiple of.
BLOCKS: dict[GGMLType, tuple[int, int]] = {
    GGMLType.F32: (1, 4),
    GGMLType.F16: (1, 2),
    GGMLType.Q4_0: (32, 18),
    GGMLType.Q4_1: (32, 20),
    GGMLType.Q5_0: (32, 22),
    GGMLType.Q5_1: (32, 24),
    GGMLType.Q8_0: (32, 34),
    GGMLType.Q8_1: (32, 36),
    GGMLType.Q2_K: (256, 84),
    GGMLType.Q3_K: (256, 110),
    GGMLType.Q4_K: (256, 144),
    GGMLType.Q5_K: (256, 176),
    GGMLType.Q6_K: (256, 210),
    GGMLType.Q8_K: (256, 292),
    GGMLType.IQ2_XXS: (256, 66),
    GGMLType.IQ2_XS: (256, 74),
    GGMLType.IQ3_XXS: (256, 98),
    GGMLType.IQ1_S: (256, 50),
    GGMLType.IQ4_NL: (32, 18),
    GGMLType.IQ3_S: (256, 110),
    GGMLType.IQ2_S: (256, 82),
    GGMLType.IQ4_XS: (256, 136),
    GGMLType.I8: (1, 1),
    GGMLType.I16: (1, 2),
    GGMLType.I32: (1, 4),
    GGMLType.I64: (1, 8),
    GGMLType.F64: (1, 8),
    GGMLType.IQ1_M: (256, 56),
    GGMLType.BF16: (1, 2),
    GGMLType.TQ1_0: (256, 54),
    GGMLType.TQ2_0: (256, 66),
    GGMLType.I2_S: (128, 32),
    GGMLType.I8_S: (1, 1),
    GGMLType.TL1: (32, 8),
    GGMLType.TL2: (32, 0),
}


def tensor_bytes(type_: GGMLType, shape: Sequence[int]) -> int:
    """Size in the file of a tensor whose rows are whole blocks.

    Args:
        type_: Its type.
        shape: Slowest dimension first, all positive.
    """
    n = math.prod(shape)
    if type_ == GGMLType.TL2:  # as ggml computes it, division by division
        n_row, n_col = n // shape[-1], shape[-1]
        codes = (n_col - 256) * n_row // 3 * 5 // 8 + 256 * n_row // 2 * 4 // 8
        return align_up(codes, 32) + SCALE_TAIL
    block, size = BLOCKS[type_]
    tail = SCALE_TAIL if type_ in (GGMLType.I2_S, GGMLType.TL1) else 0
    return n // block * size + tail


def shape_fault(type_: GGMLType, shape: Sequence[int]) -> str | None:
    """Why a tensor of this shape (slowest dimension first) cannot have this type, or None."""
    block = BLOCKS[type_][0]
    if not shape or min(shape) < 1:
        return "every dimension must be positive"
    if shape[-1] % block:
        return f"its rows of {shape[-1]} are not a multiple of {block}, the block of {type_.name}"
    if type_ == GGMLType.TL2 and shape[-1] < 256:
        return f"its rows of {shape[-1]} are shorter than 256, the least for TL2"
    if max(math.prod(shape), tensor_bytes(type_, shape)) > MAX_INT64:
        return "its size overflows 63 bits"
    return None


def align_up(n: int, alignment: int) -> int:
    """The next multiple of `alignment` that is at least `n`."""
    return -(-n // alignment) * alignment


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """Where a tensor lies.

    Attributes:
        shape: Slowest dimension first: a matrix is (n_row, n_col).
        offset: Of the first byte, from the start of its file.
        n_bytes: Size without alignment padding.
        shard: Which file of a split model it lies in, from 0.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLType
    offset: int
    n_bytes: int
    shard: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorData:
    """A tensor to write.

    Attributes:
        shape: Slowest dimension first.
        data: Its bytes in the file's layout, or a function that makes them when their turn comes, whole or in
            pieces, so that a conversion holds one tensor at a time, or less.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLType
    data: NDArray[Any] | bytes | Callable[[], NDArray[Any] | bytes | Iterable[NDArray[Any]]]


@dataclass(frozen=True, slots=True, eq=False)
class TypedArray:
    """An array that says its element type: nested arrays as read, and any array to write.

    Attributes:
        type: Of the elements.
        values: Numbers, strings (str or bytes), or `TypedArray`, `StringArray` and numpy arrays when nested.
    """

    type: ValueType
    values: Sequence[Any] | NDArray[Any]

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)


class StringArray(Sequence[bytes]):
    """Strings as the file holds them: bytes, since a token need not be valid UTF-8.

    Kept as one block and the start of each, at no more than twice its size in the file; a vocabulary of a hundred
    thousand strings becomes Python objects only when asked for.

    Args:
        block: Strings, each after its length in eight bytes.
        starts: Offset in `block` of the first byte of each string, then `len(block) + 8`.
    """

    __slots__ = ("_block", "_starts")

    def __init__(self, block: bytes, starts: NDArray[np.uint64]) -> None:
        self._block = block
        self._starts = starts

    @classmethod
    def of(cls, strings: Iterable[str | bytes]) -> StringArray:
        """From strings; str is encoded as UTF-8. Raises `TypeError` for anything else."""
        pieces: list[bytes] = []
        starts = [8]
        for string in strings:
            raw = string.encode() if isinstance(string, str) else string
            if not isinstance(raw, bytes):
                raise TypeError(f"{string!r} is not a string")
            pieces += (len(raw).to_bytes(8, "little"), raw)
            starts.append(starts[-1] + len(raw) + 8)
        return cls(b"".join(pieces), np.array(starts, np.uint64))

    @property
    def block(self) -> bytes:
        """All strings as the file holds them."""
        return self._block

    def tolist(self) -> list[bytes]:
        """All strings."""
        block = self._block
        return [block[start : end - 8] for start, end in pairwise(self._starts.tolist())]

    def text(self) -> list[str]:
        """All strings as text. Raises `UnicodeDecodeError` where one is not UTF-8."""
        return [string.decode() for string in self.tolist()]

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return self.tolist()[index]
        i = range(len(self))[index]
        return self._block[int(self._starts[i]) : int(self._starts[i + 1]) - 8]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.tolist())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, StringArray):
            return self._block == other._block
        return isinstance(other, Sequence) and self.tolist() == list(other)

    __hash__ = None  # type: ignore[assignment]  # equal to lists, which have none

    def __repr__(self) -> str:
        return f"StringArray({len(self)} strings)"
