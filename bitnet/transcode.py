"""The same ternary weights in another container type, bit for bit.

A ternary tensor is trits times one float32. I2_S stores both; TQ1_0, TQ2_0 and F16 cannot hold that float32 exactly, so
their trits get scale 1 and the true scale goes to a `.scale` tensor beside the matrix; F32 stores the products. Decoded
weights are equal bits in all of them, which is how one model is shown to several engines. A projection of floats that
are not ternary is made so by mean|w| where the target can hold nothing else, and said to be.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.codecs import CODECS, Ternary, pack_i2_s, pack_tq1_0, pack_tq2_0
from bitnet.codecs.base import to_float16
from bitnet.errors import ModelFileError, UsageError
from bitnet.gguf import GGUF, GGMLType, TensorData, TensorInfo, write
from bitnet.gguf_types import BLOCKS
from bitnet.master_weights import as_float32, ternarise

#: Target types, and the `general.file_type` each is announced by.
FILE_TYPES = {GGMLType.F32: 0, GGMLType.F16: 1, GGMLType.TQ1_0: 36, GGMLType.TQ2_0: 37, GGMLType.I2_S: 40}
SCALE_BESIDE = (GGMLType.F16, GGMLType.TQ1_0, GGMLType.TQ2_0)  # types whose scale is a tensor of its own
_FLOATS: dict[GGMLType, type[np.generic]] = {
    GGMLType.F32: np.float32,
    GGMLType.F16: np.float16,
    GGMLType.BF16: np.uint16,
}
_PROJECTION = re.compile(r"blk\.\d+\.(attn_[qkv]|attn_output|ffn_(gate|up|down))\.weight")


@dataclass(slots=True, kw_only=True)
class Part:
    """A tensor of the target: how it is made, and what its weights must be.

    Attributes:
        source: The tensor it comes from.
        make: Its bytes, made anew at every call: one tensor is in memory at a time.
        expected: The weights of some of its rows, from the source; None where the bytes are copied.
        lost: What the conversion changes, or "".
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLType
    source: str
    make: Callable[[], NDArray[Any]]
    expected: Callable[[], Callable[[slice], NDArray[np.float32]]] | None = None
    lost: str = ""

    def data(self) -> TensorData:
        """For the writer."""
        return TensorData(name=self.name, shape=self.shape, type=self.type, data=self.make)


def transcode(source: GGUF, target: str | PathLike[str], to: GGMLType, *, arch: str | None = None) -> Path:
    """Write `source` with its ternary matrices as `to`; everything else is copied.

    Args:
        source: An open model: a GGUF, or a checkpoint read as one.
        target: The new file; it appears whole or not at all.
        to: One of `FILE_TYPES`.
        arch: Another architecture name, for an engine that knows the graph by that name only.

    Raises:
        UsageError: `to` is not one of these, a row does not suit it, or a tensor has several scales.
    """
    written = Path(target)
    written.parent.mkdir(parents=True, exist_ok=True)
    parts = plan(source, to)
    write(written, metadata(source, to, arch), (part.data() for part in parts), alignment=source.alignment)
    return written


def metadata(source: GGUF, to: GGMLType, arch: str | None = None) -> dict[str, Any]:
    """The keys of the target."""
    old = str(source.metadata["general.architecture"])
    out: dict[str, Any] = {}
    for key, value in source.metadata.items():
        renamed = arch + key[len(old) :] if arch and key.startswith(f"{old}.") else key
        out[renamed] = (source.types[key], value)
    if arch:
        out["general.architecture"] = arch
    out["general.file_type"] = FILE_TYPES[to]
    return out


def plan(source: GGUF, to: GGMLType) -> list[Part]:
    """Every tensor of the target, in order. Float projections are read once, to see whether they are ternary.

    Raises:
        UsageError: As `transcode`, before anything is written.
    """
    if to not in FILE_TYPES:
        raise UsageError(f"cannot transcode to {to.name}", remedy=f"one of {', '.join(t.name for t in FILE_TYPES)}")
    return list(_parts(source, to))


def _parts(source: GGUF, to: GGMLType) -> Iterator[Part]:
    matrices = {name: m for name in source.tensors if (m := matrix_of(source, name)) is not None}
    beside = {m.beside for m in matrices.values()}
    for name, info in source.tensors.items():
        if name in beside:
            continue  # written anew, or multiplied in
        matrix = matrices.get(name)
        if matrix is None or (info.type == to and not (matrix.has_scale and to not in SCALE_BESIDE)):
            yield _copy(source, name)
            if matrix is not None and matrix.has_scale:
                yield _copy(source, matrix.beside)
        elif matrix.floats is not None and not matrix.exact and to in _FLOATS:
            yield _float_part(source, info, to)
            if matrix.has_scale:
                yield _copy(source, matrix.beside)
        else:
            _check_width(info, to)
            yield matrix.part(to)
            if to in SCALE_BESIDE:
                yield Part(
                    name=matrix.beside,
                    shape=(1,),
                    type=GGMLType.F32,
                    source=name,
                    make=lambda m=matrix: np.array([m.scale()], "<f4"),  # type: ignore[misc]  # binds the loop's value
                )


def _copy(source: GGUF, name: str) -> Part:
    info = source.tensors[name]
    return Part(name=name, shape=info.shape, type=info.type, source=name, make=lambda: source.raw(name))


def _check_width(info: TensorInfo, to: GGMLType) -> None:
    block = BLOCKS[to][0]
    if info.shape[-1] % block:
        raise UsageError(f"{to.name} takes rows of a multiple of {block}; {info.name} has {info.shape[-1]}")


def _float_part(source: GGUF, info: TensorInfo, to: GGMLType) -> Part:
    """A float matrix that is not ternary, in another float type."""

    def values() -> NDArray[Any]:
        return source.raw(info.name).view(_FLOATS[info.type]).reshape(info.shape)

    def make() -> NDArray[Any]:
        dense = as_float32(values())
        return dense if to == GGMLType.F32 else to_float16(dense, info.name)

    def rounded(rows: slice) -> NDArray[np.float32]:
        dense = as_float32(values()[rows])
        return dense if to == GGMLType.F32 else to_float16(dense, info.name).astype(np.float32)

    lost = "" if to == GGMLType.F32 else f"{info.name} is rounded to float16"
    return Part(
        name=info.name, shape=info.shape, type=to, source=info.name, make=make, expected=lambda: rounded, lost=lost
    )


def matrix_of(source: GGUF, name: str) -> MatrixSource | None:
    """A tensor as a ternary matrix, if it is one or can be made one."""
    info = source.tensors[name]
    codec = CODECS.get(info.type)
    if codec is not None and codec.ternary:
        return MatrixSource(source=source, info=info)
    if _PROJECTION.fullmatch(name) and info.type in _FLOATS:
        return MatrixSource(source=source, info=info, floats=_FLOATS[info.type])
    return None


@dataclass(slots=True, kw_only=True)
class MatrixSource:
    """A ternary matrix of the source; it keeps its scale, never its weights.

    Attributes:
        floats: How its elements are stored where the file holds floats.
        exact: Whether those floats are ternary already.
    """

    source: GGUF
    info: TensorInfo
    floats: type[np.generic] | None = None
    exact: bool = field(init=False, default=True)
    _scale: np.float32 | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.floats is not None:
            self.exact = self.read()[2]
            self.source.release()

    @property
    def beside(self) -> str:
        """Name of the tensor that holds its scale, if there is one."""
        return self.info.name.removesuffix(".weight") + ".scale"

    @property
    def has_scale(self) -> bool:
        """Whether the source has that tensor."""
        return self.beside in self.source.tensors

    def scale(self) -> np.float32:
        """What a trit is multiplied by, all told."""
        if self._scale is None:
            self.read()
        assert self._scale is not None
        return self._scale

    def part(self, to: GGMLType) -> Part:
        """The tensor of the target that holds its trits."""
        info = self.info
        lost = "" if self.exact else f"{info.name} is made ternary by mean|w|"
        return Part(
            name=info.name,
            shape=info.shape,
            type=to,
            source=info.name,
            make=lambda: self._encode(to),
            expected=self._expected,
            lost=lost,
        )

    def _expected(self) -> Callable[[slice], NDArray[np.float32]]:
        scale, trits, _ = self.read()
        return lambda rows: trits(rows).astype(np.float32) * scale

    def _encode(self, to: GGMLType) -> NDArray[Any]:
        scale, read, _ = self.read()
        trits = read(slice(0, self.info.shape[0]))
        if to == GGMLType.F32:
            return trits.astype(np.float32) * scale
        if to == GGMLType.F16:
            return trits.astype(np.float16)
        if to == GGMLType.I2_S:
            return pack_i2_s(trits, float(scale))
        return (pack_tq1_0 if to == GGMLType.TQ1_0 else pack_tq2_0)(trits)

    def read(self) -> tuple[np.float32, Callable[[slice], NDArray[np.int8]], bool]:
        """Scale, trits of given rows, and whether they are exact; read anew, and let go with what is returned.

        Raises:
            ModelFileError: A weight is NaN or infinite.
            UsageError: Blocks have scales that differ.
        """
        raw = self.source.raw(self.info.name)
        if self.floats is None:
            scale, trits, exact = (*self._unpack(raw), True)
        else:
            found = ternarise(raw.view(self.floats).reshape(self.info.shape))
            if found is None:
                raise ModelFileError(f"tensor {self.info.name} holds NaN or infinity", where=self.source.path)
            scale, trits, exact = found.scale, found.trits, found.exact
        if self.has_scale:
            scale = np.float32(scale * np.float32(self.source.raw(self.beside).view(np.float32)[0]))
        self._scale = scale
        return scale, trits, exact

    def _unpack(self, raw: NDArray[np.uint8]) -> tuple[np.float32, Callable[[slice], NDArray[np.int8]]]:
        unpack = CODECS[self.info.type].unpack
        assert unpack is not None

        def ternary(rows: slice) -> Ternary:
            return unpack(raw, self.info.shape, rows)

        first = ternary(slice(0, 1))
        if first.block_scale is None:
            scale = np.float32(first.scale if first.scale is not None else 1.0)
        else:
            every = ternary(slice(0, self.info.shape[0])).block_scale
            assert every is not None
            if not (every == every.flat[0]).all():
                raise UsageError(
                    f"{self.info.name} has block scales that differ, so one scale cannot carry them",
                    where=self.source.path,
                    remedy="this model cannot be transcoded without loss",
                )
            scale = np.float32(every.flat[0])
        return scale, lambda rows: ternary(rows).trits
