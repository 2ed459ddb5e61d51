"""What every weight format shares: the ternary record, the codec record, and the checks on sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import ModelFileError, UsageError
from bitnet.gguf_types import BLOCKS, SCALE_TAIL, GGMLType, shape_fault, tensor_bytes

Raw = NDArray[np.uint8]
Float32 = NDArray[np.float32]
Trits = NDArray[np.int8]
Byte = TypeVar("Byte", np.uint8, np.int8)
#: What kernels take: codes [n_row, n_col / 4] in the order of I2_S, rows padded to whole groups of 128 by zero weights;
#: the scale of the tensor; block scales [n_row, n_col / 256] or None.
Codes = tuple[Raw, float, Float32 | None]

BLOCK_SCALE = 256  # elements that share a scale in TQ1_0 and TQ2_0
TAILED = (GGMLType.I2_S, GGMLType.TL1, GGMLType.TL2)  # bitnet.cpp's: the scale comes after the codes
_CHUNK = 1 << 18  # weights worked on at a time: temporaries stay in the second-level cache


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ternary:
    """A ternary matrix, unpacked: weight = trit × scale, or trit × the scale of its block.

    Attributes:
        trits: [n_row, n_col] int8, each −1, 0 or +1.
        scale: Of the whole matrix, or None.
        block_scale: [n_row, n_col / 256] f32, or None.
    """

    trits: Trits
    scale: float | None = None
    block_scale: Float32 | None = None

    def dense(self) -> Float32:
        """The weights, [n_row, n_col] f32."""
        weights = self.trits.astype(np.float32)
        if self.scale is not None:
            weights *= np.float32(self.scale)
        if self.block_scale is not None:
            blocks = weights.reshape(*self.block_scale.shape, BLOCK_SCALE)
            blocks *= self.block_scale[..., None]
        return weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """One weight format.

    Attributes:
        type: Its number in the container.
        decode: (raw bytes, shape) → weights of that shape, f32.
        encode: weights [n_row, n_col] f32, or a `Ternary` for the ternary formats → bytes.
        unpack: Ternary formats: (raw bytes, shape, rows) → `Ternary` of those rows.
        codes: Ternary formats: (raw bytes, shape) → `Codes`, checked.
    """

    type: GGMLType
    decode: Callable[[Raw, Sequence[int]], Float32]
    encode: Callable[[Float32 | Ternary], Raw]
    unpack: Callable[[Raw, Sequence[int], slice | None], Ternary] | None = None
    codes: Callable[[Raw, Sequence[int]], Codes] | None = None

    @property
    def ternary(self) -> bool:
        """Whether weights are trits times a scale."""
        return self.unpack is not None

    @property
    def block(self) -> int:
        """What the length of a row must be a multiple of."""
        return BLOCKS[self.type][0]

    def n_bytes(self, shape: Sequence[int]) -> int:
        """Size in a file. Raises `UsageError` where rows are not whole blocks."""
        matrix_shape(self.type, shape)
        return tensor_bytes(self.type, shape)


def matrix_shape(type_: GGMLType, shape: Sequence[int]) -> tuple[int, int]:
    """(n_row, n_col) of a shape, slowest first. Raises `UsageError` where rows are not whole blocks."""
    fault = shape_fault(type_, shape)
    if fault is not None:
        raise UsageError(f"shape {list(shape)} does not suit {type_.name}: {fault}", remedy="pad or split the matrix")
    return math.prod(shape[:-1]), shape[-1]


def matrix_rows(type_: GGMLType, raw: Raw, shape: Sequence[int], rows: slice | None = None) -> Raw:
    """The bytes of some rows, [rows, bytes of a row], without copying.

    Raises:
        ModelFileError: `raw` is not as long as the type and the shape ask for.
        UsageError: The shape does not suit the type, or `rows` has a step.
    """
    n_row, n_col = matrix_shape(type_, shape)
    flat = flat_bytes(type_, raw, shape)
    block, size = BLOCKS[type_]
    row_bytes = n_col // block * size
    return flat[: n_row * row_bytes].reshape(n_row, row_bytes)[row_range(rows, n_row)]


def flat_bytes(type_: GGMLType, raw: Raw, shape: Sequence[int]) -> Raw:
    """All bytes of a tensor, in one dimension. Raises `ModelFileError` where they are not as many as are due."""
    matrix_shape(type_, shape)
    due = tensor_bytes(type_, shape)
    flat = np.ascontiguousarray(raw).reshape(-1).view(np.uint8)
    if len(flat) != due:
        tail = type_ in TAILED and len(flat) == due - SCALE_TAIL
        raise ModelFileError(
            f"{type_.name} of shape {list(shape)} takes {due} bytes, not {len(flat)}"
            + ("; its scale is missing" if tail else ""),
            remedy="the file is damaged or was packed by another engine; convert it again",
        )
    return flat


def row_range(rows: slice | None, n_row: int) -> slice:
    """Rows as begin and end. Raises `UsageError` where they have a step."""
    begin, end, step = (rows or slice(None)).indices(n_row)
    if step != 1:
        raise UsageError(f"rows are {rows}", remedy="give a slice without a step")
    return slice(begin, max(begin, end))


def read_scale(type_: GGMLType, raw: Raw) -> float:
    """The scale in the tail of a tensor. Raises `ModelFileError` where it is not finite."""
    scale = float(np.frombuffer(np.ascontiguousarray(raw).reshape(-1)[-SCALE_TAIL:][:4].tobytes(), "<f4")[0])
    if not np.isfinite(scale):
        article = "an" if type_ is GGMLType.I2_S else "a"
        raise ModelFileError(
            f"the scale of {article} {type_.name} tensor is {scale}",
            remedy="the file is damaged; download or convert it again",
        )
    return scale


def put_scale(raw: Raw, scale: float) -> None:
    """Write the scale into the tail of a tensor. Raises `UsageError` where float32 cannot hold it."""
    with np.errstate(over="ignore"):
        stored = np.float32(scale)
    if not np.isfinite(stored):
        raise UsageError(f"the scale is {scale}", remedy="look for the fault where it was made")
    raw[-SCALE_TAIL:][:4] = np.frombuffer(stored.astype("<f4").tobytes(), np.uint8)


def one_scale(weights: Float32 | Ternary, type_: GGMLType) -> tuple[Trits, float]:
    """Trits and scale for a format with one scale a tensor.

    Raises:
        UsageError: There are block scales, or the matrix is not ternary: it has more than one magnitude.
    """
    if isinstance(weights, Ternary):
        if weights.block_scale is not None:
            raise UsageError(f"{type_.name} has one scale a tensor, not one a block", remedy="use TQ2_0 or TQ1_0")
        return weights.trits, 1.0 if weights.scale is None else weights.scale
    found = as_ternary(check_finite(weights))
    if found is None:
        raise UsageError(
            "the matrix is not ternary: it has more than one magnitude",
            remedy="quantise it first: scale = mean|w|, trit = clip(round(w / scale), -1, 1)",
        )
    return found


def as_ternary(dense: Float32) -> tuple[Trits, float] | None:
    """Trits and scale of a finite matrix whose non-zero weights have one magnitude; None for any other."""
    scale = np.abs(dense).max()
    trits = np.empty(dense.shape, np.int8)
    for part in chunks(*dense.shape):
        signs = np.sign(dense[part])
        if not np.array_equal(dense[part], signs * scale):
            return None
        trits[part] = signs
    return trits, float(scale)


def chunks(n_row: int, n_col: int) -> Iterator[slice]:
    """Rows in groups of about a quarter of a million weights."""
    step = max(1, _CHUNK // n_col)
    for begin in range(0, n_row, step):
        yield slice(begin, min(begin + step, n_row))


def column_group(values: NDArray[Byte], first: int, width: int) -> NDArray[Byte]:
    """Columns `first` to `first + width` of [n, m] one-byte values, contiguous; `first` is a multiple of `width`.

    Taken as items of `width` bytes, which copies several times faster than byte by byte.
    """
    items = values.view(f"V{width}")[:, first // width].copy()
    return items.view(values.dtype).reshape(-1, width)


def put_column_group(out: NDArray[Byte], first: int, values: NDArray[Byte]) -> None:
    """The other way: contiguous [n, width] values into those columns of `out`."""
    item = f"V{values.shape[1]}"
    out.view(item)[:, first // values.shape[1]] = values.view(item)[:, 0]


def check_trits(trits: Trits, block: int) -> Trits:
    """As contiguous int8 [n_row, n_col]. Raises `UsageError` for any other value, shape or type."""
    if trits.ndim != 2 or trits.dtype != np.int8 or 0 in trits.shape or trits.shape[1] % block:
        raise UsageError(
            f"trits are {trits.dtype} {list(trits.shape)}",
            remedy=f"give int8 [n_row, n_col], n_col a multiple of {block}",
        )
    if trits.min() < -1 or trits.max() > 1:
        raise UsageError("trits hold values other than -1, 0 and 1", remedy="quantise the weights first")
    return np.ascontiguousarray(trits)


def check_finite(values: Float32) -> Float32:
    """As contiguous f32 [n_row, n_col]. Raises `UsageError` where a weight is NaN or infinite."""
    weights = np.ascontiguousarray(values, np.float32)
    if not np.isfinite(weights).all():
        raise UsageError("weights hold NaN or infinity", remedy="look for the fault where they were made")
    return weights.reshape(-1, weights.shape[-1])


def to_float16(values: Float32, what: str) -> NDArray[np.float16]:
    """Rounded to float16. Raises `UsageError` where that overflows."""
    with np.errstate(over="ignore"):
        halves = values.astype("<f2")
    if np.isinf(halves).any() and not np.isinf(values).any():
        raise UsageError(f"{what} of {np.abs(values).max():g} is too large for float16", remedy="use F32 or BF16")
    return halves
