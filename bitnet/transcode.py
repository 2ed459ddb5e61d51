"""The same ternary weights in another container type, bit for bit.

A ternary tensor is trits times one float32. I2_S, TL1 and TL2 store both; TQ1_0 and TQ2_0 have float16 block scales,
which would round the float32, so their blocks get scale 1 and the true scale goes to a `.scale` tensor beside the
matrix; F32 stores the products. Decoded weights are equal bits in all of them, which is how one model is shown to
several engines. TL1 and TL2 do not say how they are tiled, so the tiles go into the metadata.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.codecs import CODECS, Codec, Ternary, Tile, Tiles, codecs
from bitnet.codecs.tiles import DEFAULT_TILES, kernel_config, propose_tile, tile_of
from bitnet.errors import UsageError
from bitnet.formats import KERNEL_CONFIG_KEY, Formats, read_formats
from bitnet.gguf import GGUF, GGMLType, TensorData, TensorInfo, write
from bitnet.gguf_types import shape_fault

#: Target types, and the `general.file_type` each is announced by.
FILE_TYPES = {
    GGMLType.F32: 0,
    GGMLType.TQ1_0: 36,
    GGMLType.TQ2_0: 37,
    GGMLType.TL1: 38,
    GGMLType.TL2: 39,
    GGMLType.I2_S: 40,
}
_BLOCK_SCALED = (GGMLType.TQ1_0, GGMLType.TQ2_0)
_TABLES = (GGMLType.TL1, GGMLType.TL2)


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
        source: An open model whose ternary matrices are I2_S, TQ1_0, TQ2_0, TL1 or TL2.
        target: The new file; it appears whole or not at all.
        to: One of these, or F32.
        arch: Another architecture name, for an engine that knows the graph by that name only.
        formats: How `source` is read; default what `read_formats` finds out.
        tiles: For TL1 and TL2: those of the build that will read the file. Default: bitnet.cpp's own, and for shapes
            that it does not know, the largest that suit.

    Raises:
        UsageError: `to` is not one of these, a row does not suit it, or a tensor has several scales.
        ModelFileError: A tensor of `source` is damaged.
    """
    if to not in FILE_TYPES:
        raise UsageError(f"cannot transcode to {to.name}", remedy=f"one of {', '.join(t.name for t in FILE_TYPES)}")
    found = formats or read_formats(source)
    chosen: dict[tuple[GGMLType, int, int], Tile] = {}
    codec = codecs(tiles=chosen)[to]
    tensors = list(_tensors(source, found.codecs, codec, DEFAULT_TILES if tiles is None else tiles, chosen))
    written = Path(target)
    written.parent.mkdir(parents=True, exist_ok=True)
    write(written, _metadata(source, to, arch, chosen), tensors, alignment=source.alignment)
    return written


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


def _is_ternary(info: TensorInfo, table: Mapping[GGMLType, Codec]) -> bool:
    return info.type in table and table[info.type].ternary


def _choose_tile(info: TensorInfo, to: GGMLType, tiles: Tiles) -> tuple[tuple[GGMLType, int, int], Tile]:
    """The tile that a matrix gets, beside what it is for."""
    n_row, n_col = math.prod(info.shape[:-1]), info.shape[-1]
    key = (to, n_row, n_col)
    return key, tile_of(tiles, to, key[1:], UsageError) if key in tiles else propose_tile(to, key[1:])


def _tensors(
    source: GGUF,
    table: Mapping[GGMLType, Codec],
    codec: Codec,
    tiles: Tiles,
    chosen: dict[tuple[GGMLType, int, int], Tile],
) -> Iterator[TensorData]:
    """What is written; the tiles it takes are entered in `chosen`, which `codec` reads."""
    to = codec.type
    scales = {name: _number(source, name) for name in source.tensors if _is_scale(source, name, table)}
    for name, info in source.tensors.items():
        if name in scales:
            continue  # written anew, or multiplied in
        if not _is_ternary(info, table):
            yield TensorData(name=name, shape=info.shape, type=info.type, data=source.raw(name))
            continue
        beside = name.removesuffix(".weight") + ".scale"
        with np.errstate(over="ignore"):
            scale = np.float32(_own_scale(source, info, table) * scales.get(beside, np.float32(1)))
        if not np.isfinite(scale):
            raise UsageError(f"{name} has a scale that is not finite", where=source.path)
        fault = shape_fault(to, info.shape)
        if fault is not None:
            raise UsageError(f"{name} cannot be {to.name}: {fault}", where=source.path, remedy="choose another type")
        if to in _TABLES:
            key, tile = _choose_tile(info, to, tiles)
            chosen[key] = tile
        inside = np.float32(1) if to in _BLOCK_SCALED else scale
        yield TensorData(name=name, shape=info.shape, type=to, data=_encoder(source, info, table, codec, inside))
        if to in _BLOCK_SCALED:
            data = np.array([scale], np.float32).view(np.uint8)
            yield TensorData(name=beside, shape=(1,), type=GGMLType.F32, data=data)


def _is_scale(source: GGUF, name: str, table: Mapping[GGMLType, Codec]) -> bool:
    """Whether a tensor is the `.scale` of a ternary one."""
    owner = source.tensors.get(name.removesuffix(".scale") + ".weight")
    return name.endswith(".scale") and owner is not None and _is_ternary(owner, table)


def _number(source: GGUF, name: str) -> np.float32:
    info = source.tensors[name]
    if info.type not in CODECS or info.shape != (1,):
        raise UsageError(f"{name} is {info.type.name} {list(info.shape)}; a scale is one float", where=source.path)
    return np.float32(CODECS[info.type].decode(source.raw(name), (1, 1))[0, 0])


def _own_scale(source: GGUF, info: TensorInfo, table: Mapping[GGMLType, Codec]) -> np.float32:
    """The one scale inside a ternary tensor. Raises `UsageError` where blocks differ."""
    unpack = table[info.type].unpack
    assert unpack is not None
    ternary = unpack(source.raw(info.name), info.shape, slice(0, 1))
    if ternary.block_scale is None:
        return np.float32(ternary.scale if ternary.scale is not None else 1.0)
    every = unpack(source.raw(info.name), info.shape, None).block_scale
    assert every is not None
    if not (every == every.flat[0]).all():
        raise UsageError(
            f"{info.name} has block scales that differ, so one scale cannot carry them",
            where=source.path,
            remedy="this model cannot be transcoded without loss",
        )
    return np.float32(every.flat[0])


def _encoder(
    source: GGUF, info: TensorInfo, table: Mapping[GGMLType, Codec], codec: Codec, scale: np.float32
) -> Callable[[], NDArray[np.uint8]]:
    """Encodes one tensor when the writer asks for it, so that one is in memory at a time."""

    def encode() -> NDArray[np.uint8]:
        unpack = table[info.type].unpack
        assert unpack is not None
        trits = unpack(source.raw(info.name), info.shape, None).trits
        return codec.encode(Ternary(trits=trits, scale=float(scale)))

    return encode
