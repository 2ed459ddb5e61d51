"""Weight formats: one module each, one table.

Every ternary format becomes the same kernel-ready codes, two bits a weight in the order of I2_S. What a file does not
say about its own bytes, the layout of I2_S and the tiles of TL1 and TL2, is bound into a table by `codecs`; `CODECS`
is the table with the usual answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from bitnet.codecs import floats, i2_s, q8_0, quants, tl1, tl2, tq
from bitnet.codecs.base import Codec, Codes, Float32, Raw, Ternary, matrix_rows
from bitnet.codecs.i2_s import Layout, pack_i2_s, unpack_i2_s
from bitnet.codecs.ternarise import ternarise
from bitnet.codecs.tiles import DEFAULT_TILES, Tile, Tiles
from bitnet.codecs.tl1 import pack_tl1, unpack_tl1
from bitnet.codecs.tl2 import pack_tl2, unpack_tl2
from bitnet.codecs.tq import pack_tq1_0, pack_tq2_0, unpack_tq1_0, unpack_tq2_0
from bitnet.errors import ModelFileError, UsageError
from bitnet.gguf_types import GGMLType

__all__ = [
    "CODECS",
    "Codec",
    "Float32",
    "Layout",
    "Ternary",
    "Tile",
    "Tiles",
    "codec_of",
    "codecs",
    "matrix_rows",
    "pack_i2_s",
    "pack_tl1",
    "pack_tl2",
    "pack_tq1_0",
    "pack_tq2_0",
    "ternarise",
    "ternary_codes",
    "unpack_i2_s",
    "unpack_tl1",
    "unpack_tl2",
    "unpack_tq1_0",
    "unpack_tq2_0",
]

_FIXED = (floats.F32, floats.F16, floats.BF16, q8_0.CODEC, tq.TQ1_0, tq.TQ2_0, *quants.CODECS)


def codecs(*, layout: Layout = Layout.X86, tiles: Tiles = DEFAULT_TILES) -> Mapping[GGMLType, Codec]:
    """The table of formats, for files whose I2_S has this layout and whose TL1 and TL2 have these tiles."""
    bound = (i2_s.codec(layout), tl1.codec(tiles), tl2.codec(tiles))
    return MappingProxyType({c.type: c for c in (*_FIXED, *bound)})


CODECS: Mapping[GGMLType, Codec] = codecs()


def codec_of(type_: GGMLType, table: Mapping[GGMLType, Codec] = CODECS) -> Codec:
    """The codec of a type. Raises `ModelFileError` for a type that no weight can have."""
    codec = table.get(type_)
    if codec is None:
        reason = quants.NO_WEIGHTS.get(type_, "this engine does not know it")
        raise ModelFileError(
            f"{type_.name} is no type for weights: {reason}", remedy="convert the model to I2_S, TQ2_0, F16 or BF16"
        )
    return codec


def ternary_codes(type_: GGMLType, raw: Raw, shape: Sequence[int], table: Mapping[GGMLType, Codec] = CODECS) -> Codes:
    """A ternary tensor as the kernels take it, checked.

    Args:
        type_: I2_S, TQ1_0, TQ2_0, TL1 or TL2.
        raw: Its bytes.
        shape: (n_row, n_col).
        table: Of formats, for a file that is not of the usual layout or tiles.

    Returns:
        Codes [n_row, n_col / 4] uint8 in the order of I2_S (a view of `raw` where that is its format; rows of TL1 and
        TL2 that are no multiple of 128 are padded with zero weights), the scale of the tensor (1 for the TQ types), and
        block scales [n_row, n_col / 256] f32 or None.

    Raises:
        ModelFileError: Wrong size, a code that stands for no weight, or a scale that is not finite.
        UsageError: The type is not ternary, or the shape does not suit it.
    """
    codec = table.get(type_)
    if codec is None or codec.codes is None:
        names = ", ".join(t.name for t, c in table.items() if c.ternary)
        raise UsageError(f"{type_.name} is not a ternary format", remedy=f"use one of {names}")
    return codec.codes(raw, shape)
