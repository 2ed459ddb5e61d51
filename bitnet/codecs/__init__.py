"""Weight formats: one module each, one table.

Every ternary format becomes the same kernel-ready codes, two bits a weight in the order of I2_S.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from bitnet.codecs import floats, i2_s, q8_0, tq
from bitnet.codecs.base import Codec, Float32, Raw, Ternary, matrix_rows
from bitnet.codecs.i2_s import pack_i2_s, unpack_i2_s
from bitnet.codecs.tq import pack_tq1_0, pack_tq2_0, unpack_tq1_0, unpack_tq2_0
from bitnet.errors import UsageError
from bitnet.gguf_types import GGMLType

__all__ = [
    "CODECS",
    "Codec",
    "Ternary",
    "pack_i2_s",
    "pack_tq1_0",
    "pack_tq2_0",
    "ternary_codes",
    "unpack_i2_s",
    "unpack_tq1_0",
    "unpack_tq2_0",
]

CODECS: Mapping[GGMLType, Codec] = MappingProxyType(
    {c.type: c for c in (floats.F32, floats.F16, floats.BF16, q8_0.CODEC, i2_s.CODEC, tq.TQ1_0, tq.TQ2_0)}
)


def ternary_codes(type_: GGMLType, raw: Raw, shape: Sequence[int]) -> tuple[Raw, float, Float32 | None]:
    """A ternary tensor as the kernels take it, checked.

    Args:
        type_: I2_S, TQ1_0 or TQ2_0.
        raw: Its bytes.
        shape: (n_row, n_col).

    Returns:
        Codes [n_row, n_col / 4] uint8 in the order of I2_S (a view of `raw` where that is its format), the scale of
        the tensor (1 for the TQ types), and block scales [n_row, n_col / 256] f32 or None (I2_S).

    Raises:
        ModelFileError: Wrong size, code 3 (the element is named), or a scale that is not finite.
        UsageError: The type is not ternary, or the shape does not suit it.
    """
    if type_ == GGMLType.I2_S:
        codes = matrix_rows(type_, raw, shape)
        i2_s.check_codes(codes)
        return codes, i2_s.read_scale(raw), None
    if type_ in (GGMLType.TQ1_0, GGMLType.TQ2_0):
        unpacked = tq.tq1_0_codes if type_ == GGMLType.TQ1_0 else tq.tq2_0_codes
        codes, block_scale = unpacked(raw, shape)
        return codes, 1.0, block_scale
    raise UsageError(f"{type_.name} is not a ternary format", remedy="use I2_S, TQ1_0 or TQ2_0")
