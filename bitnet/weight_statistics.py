"""What the numbers of a matrix or a norm look like, counted without unpacking them all at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.linear import DenseMatrix, Float32, Int8Matrix, Matrix, TernaryMatrix

_LOW_BITS = np.uint64(0x5555555555555555)
_ONE_CODE = (0x00, 0x55, 0xAA)  # bytes of four equal codes: all −1, all 0, all +1
_CHUNK = 1 << 20  # weights, or bytes of codes, looked at together
_CACHED = 1 << 17  # weights that stay in a cache of the processor between two operations


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixStatistics:
    """One matrix.

    Attributes:
        shape: (n_row, n_col).
        negative, zero, positive: How many weights are −s, 0 and +s; None where they have more magnitudes than one.
        scale: That magnitude, or None. A mean of several where each block has its own.
        mean_abs: mean|w|, scales included.
        max_abs: max|w|, scales included.
        finite: Whether every weight and scale is.
    """

    name: str
    type: str
    shape: tuple[int, int]
    negative: int | None
    zero: int | None
    positive: int | None
    scale: float | None
    mean_abs: float
    max_abs: float
    finite: bool

    @property
    def n(self) -> int:
        """Weights."""
        return self.shape[0] * self.shape[1]

    def to_dict(self) -> dict[str, Any]:
        """As plain values; numbers that are not finite as None."""
        return _plain(asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class NormStatistics:
    """One vector of norm weights (gamma).

    Attributes:
        rms: √mean(γ²).
    """

    name: str
    n: int
    min: float
    max: float
    mean: float
    rms: float

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return _plain(asdict(self))


def norm_statistics(name: str, values: Float32) -> NormStatistics:
    """Of a vector, finite."""
    wide = values.astype(np.float64)
    rms = float(np.sqrt((wide * wide).mean()))
    return NormStatistics(
        name=name, n=len(wide), min=float(wide.min()), max=float(wide.max()), mean=float(wide.mean()), rms=rms
    )


def matrix_statistics(matrix: Matrix) -> MatrixStatistics:
    """Of a matrix in any form the engine keeps it in."""
    return _ternary(matrix) if isinstance(matrix, TernaryMatrix) else _float(matrix)


def is_ternary(matrix: Matrix, n_row: int | None = None) -> bool:
    """Whether a matrix is ternary in type, or its floats have one magnitude: a ternary one carried in a float type.

    Args:
        matrix: Q8_0 is never taken for a carrier, since its block scales round what it carries.
        n_row: Rows of floats to look at; default all, until they have a second magnitude.
    """
    if not isinstance(matrix, DenseMatrix):
        return isinstance(matrix, TernaryMatrix)
    n_row, step = n_row or matrix.n_row, max(1, _CHUNK // matrix.n_col)
    known = None
    for begin in range(0, n_row, step):
        bits, without_sign = _magnitude_bits(matrix.data[begin : min(begin + step, n_row)])
        magnitude = bits & without_sign
        some = magnitude[magnitude != 0]
        known = some[0] if known is None and some.size else known
        if (some != known).any():
            return False
    return True


@np.errstate(over="ignore", invalid="ignore")  # which is what is asked
def is_finite(matrix: Matrix) -> bool:
    """Whether every float, times the scale, and every block scale is; of ternary matrices reading has made sure.

    Reads a float matrix once, in a tenth of a second for the embedding of the 2B model.
    """
    if isinstance(matrix, Int8Matrix):
        return bool(np.isfinite(matrix.block_scale).all())
    if not isinstance(matrix, DenseMatrix):
        return True
    bits, without_sign = _magnitude_bits(matrix.data.reshape(-1))
    largest = max((bits[i : i + _CACHED] & without_sign).max() for i in range(0, len(bits), _CACHED))
    return bool(np.isfinite(_floats(np.array([largest]).view(matrix.data.dtype)) * matrix.scale)[0])


def constant_fault(matrix: Matrix) -> str | None:
    """Why a matrix carries no information (`all zero`, `constant`), or None.

    Costs a row where it is not so: loading asks it of every matrix.
    """
    if matrix.scale == 0:
        return "all zero: its scale is 0"
    block_scale = matrix.block_scale if isinstance(matrix, TernaryMatrix | Int8Matrix) else None
    if block_scale is not None and not block_scale[0].any() and not block_scale.any():
        return "all zero: every block scale is 0"
    values = matrix.codes if isinstance(matrix, TernaryMatrix) else getattr(matrix, "data")  # noqa: B009  # of the rest
    first = values[0, 0]
    if (values[0] != first).any() or (values != first).any():
        return None
    if isinstance(matrix, TernaryMatrix) and first not in _ONE_CODE:
        return None
    if first == (_ONE_CODE[1] if isinstance(matrix, TernaryMatrix) else 0):
        return "all zero"
    if block_scale is not None and (block_scale != block_scale[0, 0]).any():
        return None
    return "constant: all its weights are equal"


def _ternary(m: TernaryMatrix) -> MatrixStatistics:
    """Counts by the bits of the codes: 0, 1, 2 are −1, 0, +1; code 3 was refused, padding is 0."""
    n, high, low = m.n_row * m.n_col, 0, 0
    for part in _flat_chunks(m.codes.reshape(-1)):
        words = part.view(np.uint64)
        high += int(np.bitwise_count(words >> np.uint64(1) & _LOW_BITS).sum(dtype=np.int64))
        low += int(np.bitwise_count(words & _LOW_BITS).sum(dtype=np.int64))
    positive, negative = high, m.codes.size * 4 - high - low
    scale, largest, finite = float(m.scale), abs(float(m.scale)), bool(np.isfinite(m.scale))
    if m.block_scale is not None:
        scale *= float(m.block_scale.mean(dtype=np.float64))
        largest *= float(np.abs(m.block_scale).max())
        finite = finite and bool(np.isfinite(m.block_scale).all())
    return MatrixStatistics(
        name=m.name,
        type=m.type_name,
        shape=(m.n_row, m.n_col),
        negative=negative,
        zero=n - negative - positive,
        positive=positive,
        scale=scale,
        mean_abs=abs(scale) * (negative + positive) / n,
        max_abs=largest if negative + positive else 0.0,
        finite=finite,
    )


@np.errstate(over="ignore", invalid="ignore")  # told as not finite
def _float(m: Matrix) -> MatrixStatistics:
    """Counts of the decoded weights; ternary where all that are not zero have one magnitude."""
    n, finite, negative, zero, total = m.n_row * m.n_col, True, 0, 0, 0.0
    least, most = np.inf, 0.0
    for part in _decoded(m):
        magnitude = np.abs(part)
        top = float(magnitude.max())
        if not np.isfinite(top):
            finite = False
            continue
        nothing = magnitude == 0
        zero += int(np.count_nonzero(nothing))
        negative += int(np.count_nonzero(part < 0))
        total += float(magnitude.sum(dtype=np.float64))
        least, most = min(least, float(magnitude.min(where=~nothing, initial=np.inf))), max(most, top)
    one = finite and least == most
    return MatrixStatistics(
        name=m.name,
        type=m.type_name,
        shape=(m.n_row, m.n_col),
        negative=negative if one else None,
        zero=zero if one else None,
        positive=n - negative - zero if one else None,
        scale=most if one else None,
        mean_abs=total / n,
        max_abs=most,
        finite=finite,
    )


def _decoded(m: Matrix) -> Iterator[Float32]:
    """The weights of a float or Q8_0 matrix, some rows at a time, flat."""
    rows = max(1, _CHUNK // m.n_col)
    for begin in range(0, m.n_row, rows):
        part = slice(begin, begin + rows)
        if isinstance(m, Int8Matrix):
            blocks = m.data[part].reshape(-1, 32).astype(np.float32) * m.block_scale[part].reshape(-1, 1)
            yield blocks.reshape(-1) * m.scale
        elif isinstance(m, DenseMatrix):
            yield _floats(m.data[part]).reshape(-1) * m.scale


def _floats(data: NDArray[Any]) -> Float32:
    """float32, binary16 as uint16, or bfloat16 as int16, to float32."""
    if data.dtype == np.uint16:
        return data.view(np.float16).astype(np.float32)
    if data.dtype == np.int16:
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return data.astype(np.float32, copy=False)


def _magnitude_bits(data: NDArray[Any]) -> tuple[NDArray[np.unsignedinteger[Any]], np.unsignedinteger[Any]]:
    """Floats as unsigned integers, which are ordered as the magnitudes are, and the mask that leaves out the sign."""
    bits = data.view(f"u{data.itemsize}")
    return bits, bits.dtype.type((1 << (8 * data.itemsize - 1)) - 1)


def _flat_chunks(values: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Whole groups of 32 bytes, many together."""
    for begin in range(0, len(values), _CHUNK):
        yield np.ascontiguousarray(values[begin : begin + _CHUNK])


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in values.items()}
