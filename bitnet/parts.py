"""Tensors of a model to be written: where each comes from, how its bytes are made, and what they must decode to.

A part never holds weights. Its bytes come in pieces of some megabytes, made anew whenever they are asked for, and the
pages they were read from are let go after each: an embedding of two gigabytes is converted in a few hundred megabytes.
Ternary matrices alone are made whole, because their packed layouts interleave rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.codecs import CODECS, Codec, Ternary
from bitnet.codecs.base import BLOCK_SCALE
from bitnet.errors import ModelFileError, UsageError
from bitnet.gguf import GGUF, GGMLType, TensorData, TensorInfo
from bitnet.gguf_types import BLOCKS
from bitnet.master_weights import Float32, Trits, ternarise

#: Types whose scale is a tensor of its own: they cannot hold a float32 inside.
SCALE_BESIDE = (GGMLType.F16, GGMLType.TQ1_0, GGMLType.TQ2_0)
#: Types with a scale in every block of 256.
BLOCK_SCALED = (GGMLType.TQ1_0, GGMLType.TQ2_0)
#: Types that can hold trits whose blocks have several scales, or the products.
_HOLD_BLOCKS = (GGMLType.TQ1_0, GGMLType.TQ2_0, GGMLType.F16, GGMLType.F32)
FLOATS: dict[GGMLType, type[np.generic]] = {
    GGMLType.F32: np.float32,
    GGMLType.F16: np.float16,
    GGMLType.BF16: np.uint16,
}
#: Words of float types, and the bits that are all set in NaN and infinity alone.
_EXPONENT: dict[GGMLType, tuple[str, int]] = {
    GGMLType.F32: ("<u4", 0x7F800000),
    GGMLType.F16: ("<u2", 0x7C00),
    GGMLType.BF16: ("<u2", 0x7F80),
}
_PROJECTION = re.compile(r"blk\.\d+\.(attn_[qkv]|attn_output|ffn_(gate|up|down))\.weight")
MADE_TERNARY = "made ternary by mean|w|"
PIECE = 1 << 22  # weights made, written or compared at a time

#: The weights of some rows, [rows, n_col] f32.
RowReader = Callable[[slice], Float32]
Pieces = Iterable[NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A tensor of the target.

    Attributes:
        source: The tensor it comes from.
        pieces: Its bytes, made anew at every call.
        expected: The weights of some of its rows, from the source; None where the bytes are copied.
        original: The weights before they were rounded to `type`; None where nothing is rounded.
        lost: What the conversion changes beside that, or "".
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLType
    source: str
    pieces: Callable[[], Pieces]
    expected: Callable[[], RowReader] | None = None
    original: Callable[[], RowReader] | None = None
    lost: str = ""

    def data(self) -> TensorData:
        """For the writer."""
        return TensorData(name=self.name, shape=self.shape, type=self.type, data=self.pieces)


def row_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """The rows of a matrix, `PIECE` weights at a time; a vector is one row."""
    n_row, n_col = math.prod(shape[:-1]), shape[-1]
    step = max(1, PIECE // n_col)
    return (slice(begin, min(begin + step, n_row)) for begin in range(0, n_row, step))


def copy(source: GGUF, name: str) -> Part:
    """A tensor as it is, byte by byte; its pieces raise `ModelFileError` for NaN and infinity.

    Its rows lie one after the other in whole blocks, as for `row_reader`.
    """
    info = source.tensors[name]

    def pieces() -> Iterator[NDArray[np.uint8]]:
        raw, row_bytes = source.raw(name), _row_bytes(info)
        for rows in row_blocks(info.shape):
            piece = raw[rows.start * row_bytes : rows.stop * row_bytes]
            with _named(source, name):
                finite = _finite(info.type, piece, (rows.stop - rows.start, info.shape[-1]))
            if not finite:
                raise _not_finite(source, name)
            yield piece
            source.release()

    return Part(name=name, shape=info.shape, type=info.type, source=name, pieces=pieces)


def _finite(type_: GGMLType, raw: NDArray[np.uint8], shape: tuple[int, int]) -> bool:
    """Whether rows hold neither NaN nor infinity; of a type that cannot be read here, nothing is known."""
    if type_ == GGMLType.Q8_0:
        type_, raw = GGMLType.F16, np.ascontiguousarray(raw.reshape(-1, BLOCKS[type_][1])[:, :2]).reshape(-1)
    if type_ in _EXPONENT:
        word, exponent = _EXPONENT[type_]
        return not ((raw.view(word) & exponent) == exponent).any()
    return type_ not in CODECS or bool(np.isfinite(CODECS[type_].decode(raw, shape)).all())


def _not_finite(source: GGUF, name: str) -> ModelFileError:
    return ModelFileError(f"tensor {name} holds NaN or infinity", where=source.path)


@contextmanager
def _named(source: GGUF, name: str) -> Iterator[None]:
    """Codecs know neither files nor tensors: what they refuse is told with both."""
    try:
        yield
    except (ModelFileError, UsageError) as error:
        if error.where is not None:
            raise
        raise type(error)(f"tensor {name}: {error.what}", where=source.path, remedy=error.remedy) from None


def _row_bytes(info: TensorInfo) -> int:
    return info.n_bytes // math.prod(info.shape[:-1])


def retyped(source: GGUF, info: TensorInfo, to: GGMLType, table: Mapping[GGMLType, Codec] = CODECS) -> Part:
    """A float tensor in another type, rounded where that holds less.

    Raises:
        UsageError: Its type is not one that can be read, or its rows do not suit `to`.
    """
    if info.type not in table:
        raise UsageError(f"{info.name} is {info.type.name}, which cannot be made {to.name}", where=source.path)
    encode, decode = CODECS[to].encode, CODECS[to].decode
    original = row_reader(source, info, table)

    def pieces() -> Iterator[NDArray[np.uint8]]:
        read = original()
        for rows in row_blocks(info.shape):
            weights = read(rows)
            with _named(source, info.name):
                encoded = encode(weights)
            yield encoded
            source.release()

    def expected() -> RowReader:
        read = original()

        def rounded(rows: slice) -> Float32:
            weights = read(rows)
            return decode(encode(weights), weights.shape)

        return rounded

    return Part(
        name=info.name,
        shape=info.shape,
        type=to,
        source=info.name,
        pieces=pieces,
        expected=expected,
        original=None if to == GGMLType.F32 else original,
    )


def row_reader(source: GGUF, info: TensorInfo, table: Mapping[GGMLType, Codec] = CODECS) -> Callable[[], RowReader]:
    """Opens a tensor whose rows lie one after the other in whole blocks, as all but the ternary types do.

    What is opened raises `ModelFileError` for rows that hold NaN or infinity.
    """

    def read() -> RowReader:
        raw, row_bytes, decode = source.raw(info.name), _row_bytes(info), table[info.type].decode

        def weights(rows: slice) -> Float32:
            with _named(source, info.name), np.errstate(invalid="ignore", over="ignore"):  # seen below
                found = decode(
                    raw[rows.start * row_bytes : rows.stop * row_bytes], (rows.stop - rows.start, info.shape[-1])
                )
            if not np.isfinite(found).all():
                raise _not_finite(source, info.name)
            return found

        return weights

    return read


def matrix_of(source: GGUF, name: str, table: Mapping[GGMLType, Codec] = CODECS) -> MatrixSource | None:
    """A tensor as a ternary matrix, if it is one or can be made one; `table` says how formats are read."""
    info = source.tensors[name]
    codec = table.get(info.type)
    if codec is not None and codec.unpack is not None:
        return MatrixSource(source=source, info=info, unpack=codec.unpack)
    if _PROJECTION.fullmatch(name) and info.type in FLOATS:
        return MatrixSource(source=source, info=info, floats=FLOATS[info.type])
    return None


@dataclass(slots=True, kw_only=True)
class MatrixSource:
    """A ternary matrix of the source; it keeps its scale, never its weights.

    TQ1_0 and TQ2_0 may have another scale in every block. Where they do, there is no one scale, and only types that
    hold blocks or products can carry the matrix: see `blockwise`.

    Attributes:
        unpack: The codec's, where the type is a ternary one.
        floats: How its elements are stored where the file holds floats.
        exact: Whether those floats are ternary already.
    """

    source: GGUF
    info: TensorInfo
    unpack: Callable[[NDArray[np.uint8], tuple[int, ...], slice | None], Ternary] | None = None
    floats: type[np.generic] | None = None
    exact: bool = field(init=False, default=True)
    _scale: np.float32 | None = field(init=False, default=None)
    _block_scale: np.float32 | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.floats is not None:
            self.exact = self.read()[2]
            self.source.release()
        elif self.info.type in BLOCK_SCALED:
            self._block_scale = self._one_block_scale()

    @property
    def beside(self) -> str:
        """Name of the tensor that holds its scale, if there is one."""
        return self.info.name.removesuffix(".weight") + ".scale"

    @property
    def has_scale(self) -> bool:
        """Whether the source has that tensor."""
        return self.beside in self.source.tensors

    @property
    def blockwise(self) -> bool:
        """Whether blocks that are not all zero have scales that differ."""
        return self.info.type in BLOCK_SCALED and self._block_scale is None

    def scale(self) -> np.float32:
        """What a trit is multiplied by, all told. Raises `UsageError` where it is blockwise, or not finite."""
        if self._scale is None:
            self.read()
        assert self._scale is not None
        return self._scale

    def part(self, codec: Codec) -> Part:
        """The tensor of the target that holds its trits; their scale is inside, or to be put beside (`SCALE_BESIDE`).

        Of a blockwise matrix, the blocks' scales are inside, and one that the source has beside is to be copied.

        Raises:
            UsageError: It is blockwise, and the type has one scale a tensor.
        """
        if self.blockwise:
            return self._blockwise_part(codec)

        def pieces() -> Iterator[NDArray[np.uint8]]:
            scale, trits, _ = self.read()
            inside = 1.0 if codec.type in SCALE_BESIDE else float(scale)
            yield codec.encode(Ternary(trits=trits(slice(0, self.info.shape[0])), scale=inside))

        def expected() -> RowReader:
            scale, trits, _ = self.read()
            return lambda rows: trits(rows).astype(np.float32) * scale

        return Part(
            name=self.info.name,
            shape=self.info.shape,
            type=codec.type,
            source=self.info.name,
            pieces=pieces,
            expected=expected,
            lost="" if self.exact else MADE_TERNARY,
        )

    def _blockwise_part(self, codec: Codec) -> Part:
        if codec.type not in _HOLD_BLOCKS:
            raise self._several_scales()
        inside = codec.type in SCALE_BESIDE

        def pieces() -> Iterator[NDArray[np.uint8]]:
            unpacked, products = self._rows(), expected()
            for rows in row_blocks(self.info.shape):
                yield codec.encode(unpacked(rows) if inside else products(rows))
                self.source.release()

        def expected() -> RowReader:
            unpacked = self._rows()
            scale = _number(self.source, self.beside) if self.has_scale else np.float32(1)
            return lambda rows: unpacked(rows).dense() * scale

        return Part(
            name=self.info.name,
            shape=self.info.shape,
            type=codec.type,
            source=self.info.name,
            pieces=pieces,
            expected=expected,
        )

    def _several_scales(self) -> UsageError:
        return UsageError(
            f"{self.info.name} has block scales that differ, so one scale cannot carry them",
            where=self.source.path,
            remedy=f"without loss it can become one of {', '.join(t.name for t in _HOLD_BLOCKS)}",
        )

    def read(self) -> tuple[np.float32, Callable[[slice], Trits], bool]:
        """Scale, trits of given rows, and whether they are exact; read anew, and let go with what is returned.

        Raises:
            ModelFileError: A weight is NaN or infinite.
            UsageError: It is blockwise, or a scale is not finite.
        """
        if self.unpack is not None:
            scale, trits, exact = (*self._unpacked(), True)
        else:
            assert self.floats is not None
            raw = self.source.raw(self.info.name)
            found = ternarise(raw.view(self.floats).reshape(self.info.shape))
            if found is None:
                raise _not_finite(self.source, self.info.name)
            scale, trits, exact = found.scale, found.trits, found.exact
        if self.has_scale:
            with np.errstate(over="ignore"):
                scale = np.float32(scale * _number(self.source, self.beside))
        if not np.isfinite(scale):
            raise UsageError(f"{self.info.name} has a scale that is not finite", where=self.source.path)
        self._scale = scale
        return scale, trits, exact

    def _rows(self) -> Callable[[slice], Ternary]:
        """Opens what is packed: some of its rows, unpacked."""
        unpack, raw = self.unpack, self.source.raw(self.info.name)
        assert unpack is not None

        def unpacked(rows: slice) -> Ternary:
            with _named(self.source, self.info.name):
                return unpack(raw, self.info.shape, rows)

        return unpacked

    def _unpacked(self) -> tuple[np.float32, Callable[[slice], Trits]]:
        if self.blockwise:
            raise self._several_scales()
        unpacked, scale = self._rows(), self._block_scale
        if scale is None:
            first = unpacked(slice(0, 1)).scale
            scale = np.float32(1.0 if first is None else first)
        return scale, lambda rows: unpacked(rows).trits

    def _one_block_scale(self) -> np.float32 | None:
        """The scale of every block that has one: ggml gives blocks of zeros the scale 0. None where scales differ."""
        unpacked = self._rows()
        found: set[float] = set()
        for rows in row_blocks(self.info.shape):
            some = unpacked(rows)
            assert some.block_scale is not None
            used = some.trits.reshape(*some.block_scale.shape, BLOCK_SCALE).any(axis=-1)
            found.update(np.unique(some.block_scale[used]).tolist())
            self.source.release()
            if len(found) > 1:
                return None
        return np.float32(found.pop() if found else 1)


def _number(source: GGUF, name: str) -> np.float32:
    info = source.tensors[name]
    if info.type not in CODECS or info.shape != (1,):
        raise UsageError(f"{name} is {info.type.name} {list(info.shape)}; a scale is one float", where=source.path)
    return np.float32(CODECS[info.type].decode(source.raw(name), (1, 1))[0, 0])
