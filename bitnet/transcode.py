"""The same ternary weights in another container type, bit for bit.

A ternary tensor is trits times one float32. I2_S, TL1 and TL2 store both; TQ1_0, TQ2_0 and F16 cannot hold that float32
exactly, so their trits get scale 1 and the true scale goes to a `.scale` tensor beside the matrix; F32 stores the
products. Decoded weights are equal bits in all of them, which is how one model is shown to several engines. TL1 and TL2
do not say how they are tiled, so the tiles go into the metadata. Where the blocks of TQ1_0 or TQ2_0 have scales that
differ, they are kept: in these two, in F16 and in F32, for no other can hold them. A projection of floats that are not
ternary is made so by mean|w| where the target can hold nothing else, and said to be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from bitnet.codecs import Codec, Tile, Tiles, codecs
from bitnet.codecs.tiles import DEFAULT_TILES, kernel_config, propose_tile, tile_of
from bitnet.errors import UsageError
from bitnet.formats import KERNEL_CONFIG_KEY, Formats, read_formats
from bitnet.gguf import GGUF, GGMLType, write
from bitnet.gguf_shards import SPLIT_KEYS
from bitnet.gguf_types import shape_fault
from bitnet.parts import FLOATS, SCALE_BESIDE, MatrixSource, Part, copy, matrix_of, retyped

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
#: Types an embedding or a head may be given.
EMBEDDING_TYPES = (GGMLType.F32, GGMLType.F16, GGMLType.BF16, GGMLType.Q8_0)
EMBEDDINGS = ("token_embd.weight", "output.weight")
#: Keys that say how the source is stored, and nothing of the model: its tiles, and the shards it lies in.
_OF_THE_SOURCE = (KERNEL_CONFIG_KEY, *SPLIT_KEYS)
_TABLES = (GGMLType.TL1, GGMLType.TL2)
_Chosen = dict[tuple[GGMLType, int, int], Tile]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A target before it is written.

    Attributes:
        metadata: Its keys.
        parts: Its tensors, in order.
        notices: What its user should know.
    """

    metadata: Mapping[str, Any]
    parts: tuple[Part, ...]
    notices: tuple[str, ...] = ()


def transcode(
    source: GGUF,
    target: str | PathLike[str],
    to: GGMLType,
    *,
    arch: str | None = None,
    embedding: GGMLType | None = None,
    formats: Formats | None = None,
    tiles: Tiles | None = None,
) -> Path:
    """Write `source` with its ternary matrices as `to`; everything else is copied.

    Args:
        source: An open model: a GGUF, or a checkpoint read as one.
        target: The new file; it appears whole or not at all.
        to: One of `FILE_TYPES`.
        arch: Another architecture name, for an engine that knows the graph by that name only.
        embedding: One of `EMBEDDING_TYPES` for the embedding and the head; default: as they are.
        formats: How `source` is read; default what `read_formats` finds out.
        tiles: For TL1 and TL2: those of the build that will read the file. Default: bitnet.cpp's own, and for shapes
            that it does not know, the largest that suit.

    Raises:
        UsageError: `to` is not one of these, a row does not suit it, or it has one scale and a tensor several.
        ModelFileError: A tensor of `source` is damaged.
    """
    planned = plan(source, to, arch=arch, embedding=embedding, formats=formats, tiles=tiles)
    written = Path(target)
    written.parent.mkdir(parents=True, exist_ok=True)
    write(written, planned.metadata, (part.data() for part in planned.parts), alignment=source.alignment)
    return written


def plan(
    source: GGUF,
    to: GGMLType,
    *,
    arch: str | None = None,
    embedding: GGMLType | None = None,
    formats: Formats | None = None,
    tiles: Tiles | None = None,
) -> Plan:
    """What `transcode` would write. Scales are read, and float projections once, to see whether they are ternary.

    Raises:
        UsageError, ModelFileError: As `transcode`, before anything is written.
    """
    if to not in FILE_TYPES:
        raise UsageError(f"cannot transcode to {to.name}", remedy=f"one of {', '.join(t.name for t in FILE_TYPES)}")
    if embedding is not None and embedding not in EMBEDDING_TYPES:
        known = ", ".join(t.name for t in EMBEDDING_TYPES)
        raise UsageError(f"an embedding cannot be made {embedding.name}", remedy=f"one of {known}")
    chosen: _Chosen = {}
    found = formats or read_formats(source)
    planner = _Planner(
        source=source,
        table=found.codecs,
        codec=codecs(tiles=chosen)[to],
        tiles=DEFAULT_TILES if tiles is None else tiles,
        embedding=embedding,
        chosen=chosen,
    )
    parts = tuple(planner.parts())
    notices = []
    if planner.unlike:
        what = f"{len(planner.unlike)} matrices, such as {planner.unlike[0]}, have several scales and become floats"
        notices.append(f"{what}, which engines run without BitNet's int8 activations")
    return Plan(metadata=_metadata(source, to, arch, chosen), parts=parts, notices=tuple(notices))


def _metadata(source: GGUF, to: GGMLType, arch: str | None, tiles: Tiles) -> dict[str, Any]:
    old = source.get("general.architecture", str)
    out: dict[str, Any] = {}
    for key, value in source.metadata.items():
        if key in _OF_THE_SOURCE:
            continue
        renamed = arch + key[len(old) :] if arch and key.startswith(f"{old}.") else key
        out[renamed] = (source.types[key], value)
    if arch:
        out["general.architecture"] = arch
    out["general.file_type"] = FILE_TYPES[to]
    if tiles:
        out[KERNEL_CONFIG_KEY] = kernel_config({(n_row, n_col): tile for (_, n_row, n_col), tile in tiles.items()})
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planner:
    """Decides, tensor by tensor.

    Attributes:
        chosen: Tiles that are taken, entered as they are; `codec` reads them.
        unlike: Ternary matrices that become floats in which nobody finds the trits again, entered likewise.
    """

    source: GGUF
    table: Mapping[GGMLType, Codec]
    codec: Codec
    tiles: Tiles
    embedding: GGMLType | None
    chosen: _Chosen
    unlike: list[str] = field(default_factory=list)

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
                chosen = self.embedding if name in EMBEDDINGS else None
                yield copy(source, name) if chosen in (None, info.type) else retyped(source, info, chosen, self.table)
            elif matrix.floats is not None and (to == info.type or (not matrix.exact and to in FLOATS)):
                yield copy(source, name) if to == info.type else retyped(source, info, to)
                if matrix.has_scale:
                    yield copy(source, matrix.beside)
            else:
                yield from self._packed(matrix)

    def _packed(self, matrix: MatrixSource) -> Iterator[Part]:
        info, to, part = matrix.info, self.codec.type, matrix.part(self.codec)
        if not self.source.made_here and not matrix.blockwise:
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
        yield part
        if matrix.blockwise:
            if to in FLOATS:
                self.unlike.append(info.name)
            if to in SCALE_BESIDE and matrix.has_scale:
                yield copy(self.source, matrix.beside)
        elif to in SCALE_BESIDE:
            yield Part(
                name=matrix.beside,
                shape=(1,),
                type=GGMLType.F32,
                source=info.name,
                pieces=lambda: iter((np.array([matrix.scale()], "<f4"),)),
            )
