"""The same ternary weights in another container type, bit for bit.

A ternary tensor is trits times one float32. I2_S, TL1 and TL2 store both; TQ1_0, TQ2_0 and F16 cannot hold that float32
exactly, so their trits get scale 1 and the true scale goes to a `.scale` tensor beside the matrix; F32 stores the
products. Decoded weights are equal bits in all of them, which is how one model is shown to several engines. TL1 and TL2
do not say how they are tiled, so the tiles go into the metadata. A projection of floats that are not ternary is made so
by mean|w| where the target can hold nothing else, and said to be.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.codecs import CODECS, Codec, Ternary, Tile, Tiles, codecs
from bitnet.codecs.base import to_float16
from bitnet.codecs.tiles import DEFAULT_TILES, kernel_config, propose_tile, tile_of
from bitnet.errors import ModelFileError, UsageError
from bitnet.formats import KERNEL_CONFIG_KEY, Formats, read_formats
from bitnet.gguf import GGUF, GGMLType, TensorData, TensorInfo, write
from bitnet.gguf_types import shape_fault
from bitnet.master_weights import as_float32, ternarise

#: Target types, and the `general.file_type` each is announced by.
FILE_TYPES = {
    GGMLType.F32: 0,
    GGMLType.F16: 1,
    GGMLType.TQ1_0: 36,
    GGMLType.TQ2_0: 37,
    GGMLType.TL1: 38,
    GGMLType.TL2: 39,
    GGMLType.I2_S: 40,
}
SCALE_BESIDE = (GGMLType.F16, GGMLType.TQ1_0, GGMLType.TQ2_0)  # types whose scale is a tensor of its own
_TABLES = (GGMLType.TL1, GGMLType.TL2)
_FLOATS: dict[GGMLType, type[np.generic]] = {
    GGMLType.F32: np.float32,
    GGMLType.F16: np.float16,
    GGMLType.BF16: np.uint16,
}
_PROJECTION = re.compile(r"blk\.\d+\.(attn_[qkv]|attn_output|ffn_(gate|up|down))\.weight")
_Chosen = dict[tuple[GGMLType, int, int], Tile]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A target before it is written.

    Attributes:
        metadata: Its keys.
        parts: Its tensors, in order.
    """

    metadata: Mapping[str, Any]
    parts: tuple[Part, ...]


def transcode(
    source: GGUF,
    target: str | PathLike[str],
    to: GGMLType,
    *,
    arch: str | None = None,
    formats: Formats | None = None,
    tiles: Tiles | None = None,
) -> Path:
    """Write `source` with its ternary matrices as `to`; everything else is copied.

    Args:
        source: An open model: a GGUF, or a checkpoint read as one.
        target: The new file; it appears whole or not at all.
        to: One of `FILE_TYPES`.
        arch: Another architecture name, for an engine that knows the graph by that name only.
        formats: How `source` is read; default what `read_formats` finds out.
        tiles: For TL1 and TL2: those of the build that will read the file. Default: bitnet.cpp's own, and for shapes
            that it does not know, the largest that suit.

    Raises:
        UsageError: `to` is not one of these, a row does not suit it, or a tensor has several scales.
        ModelFileError: A tensor of `source` is damaged.
    """
    planned = plan(source, to, arch=arch, formats=formats, tiles=tiles)
    written = Path(target)
    written.parent.mkdir(parents=True, exist_ok=True)
    write(written, planned.metadata, (part.data() for part in planned.parts), alignment=source.alignment)
    return written


def plan(
    source: GGUF,
    to: GGMLType,
    *,
    arch: str | None = None,
    formats: Formats | None = None,
    tiles: Tiles | None = None,
) -> Plan:
    """What `transcode` would write. Scales are read, and float projections once, to see whether they are ternary.

    Raises:
        UsageError, ModelFileError: As `transcode`, before anything is written.
    """
    if to not in FILE_TYPES:
        raise UsageError(f"cannot transcode to {to.name}", remedy=f"one of {', '.join(t.name for t in FILE_TYPES)}")
    chosen: _Chosen = {}
    found = formats or read_formats(source)
    planner = _Planner(
        source=source,
        table=found.codecs,
        codec=codecs(tiles=chosen)[to],
        tiles=DEFAULT_TILES if tiles is None else tiles,
        chosen=chosen,
    )
    parts = tuple(planner.parts())
    return Plan(metadata=_metadata(source, to, arch, chosen), parts=parts)


def _metadata(source: GGUF, to: GGMLType, arch: str | None, tiles: Tiles) -> dict[str, Any]:
    old = source.get("general.architecture", str)
    out: dict[str, Any] = {}
    for key, value in source.metadata.items():
        renamed = arch + key[len(old) :] if arch and key.startswith(f"{old}.") else key
        out[renamed] = (source.types[key], value)
    if arch:
        out["general.architecture"] = arch
    out["general.file_type"] = FILE_TYPES[to]
    out.pop(KERNEL_CONFIG_KEY, None)
    if tiles:
        out[KERNEL_CONFIG_KEY] = kernel_config({(n_row, n_col): tile for (_, n_row, n_col), tile in tiles.items()})
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planner:
    """Decides, tensor by tensor; tiles that are taken are entered in `chosen`, which `codec` reads."""

    source: GGUF
    table: Mapping[GGMLType, Codec]
    codec: Codec
    tiles: Tiles
    chosen: _Chosen

    def parts(self) -> Iterator[Part]:
        """Every tensor of the target, in order."""
        source, to = self.source, self.codec.type
        matrices = {name: m for name in source.tensors if (m := matrix_of(source, name, self.table)) is not None}
        beside = {m.beside for m in matrices.values()}
        for name, info in source.tensors.items():
            matrix = matrices.get(name)
            if name in beside:
                continue  # written anew, or multiplied in
            if matrix is None:
                yield _copy(source, name)
            elif matrix.floats is not None and (to == info.type or (not matrix.exact and to in _FLOATS)):
                yield _copy(source, name) if to == info.type else _rounded(source, info, to)
                if matrix.has_scale:
                    yield _copy(source, matrix.beside)
            else:
                yield from self._packed(matrix)

    def _packed(self, matrix: MatrixSource) -> Iterator[Part]:
        info, to = matrix.info, self.codec.type
        if not self.source.made_here:
            matrix.scale()  # refuse before anything is written; what is made here costs too much to make twice
        fault = shape_fault(to, info.shape)
        if fault is not None:
            raise UsageError(
                f"{info.name} cannot be {to.name}: {fault}", where=self.source.path, remedy="choose another type"
            )
        if to in _TABLES:
            key = (to, math.prod(info.shape[:-1]), info.shape[-1])
            known = key in self.tiles
            self.chosen[key] = tile_of(self.tiles, to, key[1:], UsageError) if known else propose_tile(to, key[1:])
        yield matrix.part(self.codec)
        if to in SCALE_BESIDE:
            yield Part(
                name=matrix.beside,
                shape=(1,),
                type=GGMLType.F32,
                source=info.name,
                make=lambda: np.array([matrix.scale()], "<f4"),
            )


def _copy(source: GGUF, name: str) -> Part:
    info = source.tensors[name]
    return Part(name=name, shape=info.shape, type=info.type, source=name, make=lambda: source.raw(name))


def _rounded(source: GGUF, info: TensorInfo, to: GGMLType) -> Part:
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


def matrix_of(source: GGUF, name: str, table: Mapping[GGMLType, Codec] = CODECS) -> MatrixSource | None:
    """A tensor as a ternary matrix, if it is one or can be made one; `table` says how formats are read."""
    info = source.tensors[name]
    codec = table.get(info.type)
    if codec is not None and codec.unpack is not None:
        return MatrixSource(source=source, info=info, unpack=codec.unpack)
    if _PROJECTION.fullmatch(name) and info.type in _FLOATS:
        return MatrixSource(source=source, info=info, floats=_FLOATS[info.type])
    return None


@dataclass(slots=True, kw_only=True)
class MatrixSource:
    """A ternary matrix of the source; it keeps its scale, never its weights.

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
        """What a trit is multiplied by, all told. Raises `UsageError` where blocks differ, or it is not finite."""
        if self._scale is None:
            self.read()
        assert self._scale is not None
        return self._scale

    def part(self, codec: Codec) -> Part:
        """The tensor of the target that holds its trits."""

        def make() -> NDArray[Any]:
            scale, trits, _ = self.read()
            inside = 1.0 if codec.type in SCALE_BESIDE else float(scale)
            return codec.encode(Ternary(trits=trits(slice(0, self.info.shape[0])), scale=inside))

        def expected() -> Callable[[slice], NDArray[np.float32]]:
            scale, trits, _ = self.read()
            return lambda rows: trits(rows).astype(np.float32) * scale

        return Part(
            name=self.info.name,
            shape=self.info.shape,
            type=codec.type,
            source=self.info.name,
            make=make,
            expected=expected,
            lost="" if self.exact else f"{self.info.name} is made ternary by mean|w|",
        )

    def read(self) -> tuple[np.float32, Callable[[slice], NDArray[np.int8]], bool]:
        """Scale, trits of given rows, and whether they are exact; read anew, and let go with what is returned.

        Raises:
            ModelFileError: A weight is NaN or infinite.
            UsageError: Blocks have scales that differ, or a scale is not finite.
        """
        raw = self.source.raw(self.info.name)
        if self.unpack is not None:
            scale, trits, exact = (*self._unpacked(raw), True)
        else:
            assert self.floats is not None
            found = ternarise(raw.view(self.floats).reshape(self.info.shape))
            if found is None:
                raise ModelFileError(f"tensor {self.info.name} holds NaN or infinity", where=self.source.path)
            scale, trits, exact = found.scale, found.trits, found.exact
        if self.has_scale:
            with np.errstate(over="ignore"):
                scale = np.float32(scale * _number(self.source, self.beside))
        if not np.isfinite(scale):
            raise UsageError(f"{self.info.name} has a scale that is not finite", where=self.source.path)
        self._scale = scale
        return scale, trits, exact

    def _unpacked(self, raw: NDArray[np.uint8]) -> tuple[np.float32, Callable[[slice], NDArray[np.int8]]]:
        unpack, shape = self.unpack, self.info.shape
        assert unpack is not None
        first = unpack(raw, shape, slice(0, 1))
        if first.block_scale is None:
            scale = np.float32(first.scale if first.scale is not None else 1.0)
        else:
            every = unpack(raw, shape, None).block_scale
            assert every is not None
            if not (every == every.flat[0]).all():
                raise UsageError(
                    f"{self.info.name} has block scales that differ, so one scale cannot carry them",
                    where=self.source.path,
                    remedy="this model cannot be transcoded without loss",
                )
            scale = np.float32(every.flat[0])
        return scale, lambda rows: unpack(raw, shape, rows).trits


def _number(source: GGUF, name: str) -> np.float32:
    info = source.tensors[name]
    if info.type not in CODECS or info.shape != (1,):
        raise UsageError(f"{name} is {info.type.name} {list(info.shape)}; a scale is one float", where=source.path)
    return np.float32(CODECS[info.type].decode(source.raw(name), (1, 1))[0, 0])
