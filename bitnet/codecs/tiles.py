"""Tile sizes of TL1 and TL2, which a file does not hold: they are those of the build that its kernels were made for.

bitnet.cpp generates a kernel for every matrix shape of a model and lists their tiles in `kernel_config.ini`. Files of
the models it was made for have the tiles below; any other file needs its `kernel_config.ini`.
"""

from __future__ import annotations

from collections.abc import Mapping
from configparser import ConfigParser
from configparser import Error as ConfigError
from dataclasses import dataclass
from types import MappingProxyType

from bitnet.errors import BitNetError, ModelFileError, UsageError
from bitnet.gguf_types import SCALE_TAIL, GGMLType, shape_fault, tensor_bytes

_TL1, _TL2 = GGMLType.TL1, GGMLType.TL2
_FIELDS = ("m", "k", "bm", "bk", "bmm")
_MAX_SIZE = 1 << 20  # rows or columns of any matrix


@dataclass(frozen=True, slots=True)
class Tile:
    """How a matrix is cut.

    Attributes:
        bm: Rows of a tile.
        bk: Columns of a tile.
        bmm: Rows that a kernel takes at once.
    """

    bm: int
    bk: int
    bmm: int


#: Tile by type and shape: (type, n_row, n_col).
Tiles = Mapping[tuple[GGMLType, int, int], Tile]

_BY_SETUP: dict[tuple[GGMLType, int, int], Tile] = {
    # bitnet_b1_58-large
    (_TL1, 1536, 4096): Tile(256, 128, 32),
    (_TL1, 1536, 1536): Tile(128, 64, 64),
    (_TL1, 4096, 1536): Tile(256, 128, 32),
    (_TL2, 1536, 4096): Tile(256, 96, 32),
    (_TL2, 1536, 1536): Tile(128, 192, 32),
    (_TL2, 4096, 1536): Tile(256, 96, 32),
    # bitnet_b1_58-3B
    (_TL1, 3200, 8640): Tile(160, 64, 32),
    (_TL1, 3200, 3200): Tile(320, 128, 64),
    (_TL1, 8640, 3200): Tile(320, 64, 32),
    (_TL2, 3200, 8640): Tile(160, 96, 32),
    (_TL2, 3200, 3200): Tile(320, 96, 32),
    (_TL2, 8640, 3200): Tile(320, 96, 32),
    # Llama3-8B-1.58
    (_TL1, 14336, 4096): Tile(256, 128, 32),
    (_TL1, 4096, 14336): Tile(128, 64, 64),
    (_TL1, 1024, 4096): Tile(256, 128, 32),
    (_TL1, 4096, 4096): Tile(128, 64, 64),
    (_TL2, 14336, 4096): Tile(256, 96, 32),
    (_TL2, 4096, 14336): Tile(128, 96, 32),
    (_TL2, 1024, 4096): Tile(256, 96, 32),
    (_TL2, 4096, 4096): Tile(128, 96, 32),
}

#: Tiles by origin: what bitnet.cpp's setup generates, and, where they differ, its pretuned kernels.
PRESETS: Mapping[str, Tiles] = MappingProxyType(
    {
        "bitnet.cpp's setup": MappingProxyType(_BY_SETUP),
        "bitnet.cpp's pretuned kernels": MappingProxyType(
            _BY_SETUP
            | {
                (_TL1, 14336, 4096): Tile(256, 128, 64),
                (_TL1, 4096, 14336): Tile(256, 128, 32),
                (_TL1, 1024, 4096): Tile(128, 64, 64),
                (_TL1, 4096, 4096): Tile(128, 64, 32),
            }
        ),
    }
)
DEFAULT_TILES = next(iter(PRESETS.values()))


def tile_fault(type_: GGMLType, n_row: int, n_col: int, tile: Tile) -> str | None:
    """Why a matrix cannot be cut so, or None."""
    bm, bk, bmm = tile.bm, tile.bk, tile.bmm
    if min(bm, bk, bmm) < 1:
        return "tile sizes must be positive"
    if bmm not in ((16, 32, 64) if type_ is _TL1 else (32,)):
        return f"bmm {bmm} is none of {type_.name}'s"
    if bm % bmm or n_row % bm:
        return f"bm {bm} is not a multiple of bmm {bmm}, or does not divide {n_row} rows"
    if type_ is _TL1:
        return (
            f"bk {bk} is not a multiple of {256 // bmm}, or does not divide {n_col} columns"
            if (bk % (256 // bmm) or n_col % bk)
            else None
        )
    three = n_col // bk * bk
    if bk % 24 or (n_col - three) % 32:
        return f"bk {bk} is not a multiple of 24, or leaves {n_col - three} columns, not a multiple of 32"
    used = n_row * three * 5 // 24 + n_row * (n_col - three) // 4
    if shape_fault(type_, (n_row, n_col)) or used > tensor_bytes(type_, (n_row, n_col)) - SCALE_TAIL:
        return f"bk {bk} leaves {n_col - three} columns in pairs, more than the format has room for"
    return None


def tile_of(tiles: Tiles, type_: GGMLType, shape: tuple[int, int], error: type[BitNetError] = ModelFileError) -> Tile:
    """The tile of a matrix.

    Raises:
        error: None is known for its type and shape, or the one given does not suit it.
    """
    tile = tiles.get((type_, *shape))
    if tile is None:
        known = ", ".join(f"{m} × {k}" for t, m, k in tiles if t is type_)
        raise error(
            f"the tile sizes of a {type_.name} matrix of {shape[0]} × {shape[1]} are unknown: no file holds them",
            remedy="put the kernel_config.ini of the build that made the file beside it"
            + (f"; known without it are {known}" if known else ""),
        )
    fault = tile_fault(type_, *shape, tile)
    if fault is not None:
        raise error(
            f"tile bm {tile.bm}, bk {tile.bk}, bmm {tile.bmm} does not suit a {type_.name} matrix of "
            f"{shape[0]} × {shape[1]}: {fault}",
            remedy="the kernel_config.ini belongs to another model or type",
        )
    return tile


def propose_tile(type_: GGMLType, shape: tuple[int, int]) -> Tile:
    """A tile for a shape that no preset names: the largest of those that bitnet.cpp's generators take.

    Raises:
        UsageError: None suits it.
    """
    for bm in (320, 256, 160, 128, 64, 32):
        for bk in (128, 64, 32) if type_ is _TL1 else (192, 96):
            if tile_fault(type_, *shape, Tile(bm, bk, 32)) is None:
                return Tile(bm, bk, 32)
    raise UsageError(
        f"no tile of {type_.name} suits a matrix of {shape[0]} × {shape[1]}",
        remedy="rows and columns must be multiples of 32, and columns at least 256 for TL2; use I2_S or TQ2_0",
    )


def parse_kernel_config(text: str, where: str) -> Tiles:
    """The tiles in the text of a `kernel_config.ini`, for either type: it does not say which it is of.

    Raises:
        UsageError: It is no such text, or a size is missing or absurd; `where` and the section are named.
    """
    parser = ConfigParser(interpolation=None)
    try:
        parser.read_string(text, source=where)
    except ConfigError as error:
        raise UsageError(f"is no kernel configuration: {error.message}", where=where) from None
    tiles: dict[tuple[GGMLType, int, int], Tile] = {}
    for name in parser.sections():
        sizes = [_size(parser, name, field, where) for field in _FIELDS]
        for type_ in (_TL1, _TL2):
            tiles[type_, sizes[0], sizes[1]] = Tile(*sizes[2:])
    if not tiles:
        raise UsageError("has no section with tile sizes", where=where, remedy="[Kernels_0], then m, k, bm, bk, bmm")
    return MappingProxyType(tiles)


def kernel_config(tiles: Mapping[tuple[int, int], Tile]) -> str:
    """The text of a `kernel_config.ini` with a section for each shape (n_row, n_col)."""
    sections = []
    for i, ((n_row, n_col), tile) in enumerate(tiles.items()):
        values = (n_row, n_col, tile.bm, tile.bk, tile.bmm)
        sections.append(f"[Kernels_{i}]\n" + "".join(f"{f} = {v}\n" for f, v in zip(_FIELDS, values, strict=True)))
    return "\n".join(sections)


def _size(parser: ConfigParser, section: str, field: str, where: str) -> int:
    text = parser[section].get(field, "").strip()
    if not (text.isascii() and text.isdecimal() and len(text) < 8 and 0 < int(text) <= _MAX_SIZE):
        raise UsageError(
            f"[{section}] {field} is {text!r}" if text else f"[{section}] has no {field}",
            where=where,
            remedy=f"a whole number, 1 to {_MAX_SIZE}",
        )
    return int(text)
