"""The same ternary weights in another container type, bit for bit.

A ternary tensor is trits times one float32. I2_S stores both; TQ1_0 and TQ2_0 have float16 block scales, which would
round the float32, so their blocks get scale 1 and the true scale goes to a `.scale` tensor beside the matrix; F32
stores the products. Decoded weights are equal bits in all of them, which is how one model is shown to several engines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.codecs import CODECS, pack_i2_s, pack_tq1_0, pack_tq2_0
from bitnet.errors import UsageError
from bitnet.gguf import GGUF, GGMLType, TensorData, TensorInfo, write

#: Target types, and the `general.file_type` each is announced by.
FILE_TYPES = {GGMLType.F32: 0, GGMLType.TQ1_0: 36, GGMLType.TQ2_0: 37, GGMLType.I2_S: 40}


def transcode(source: GGUF, target: str | PathLike[str], to: GGMLType, *, arch: str | None = None) -> Path:
    """Write `source` with its ternary matrices as `to`; everything else is copied.

    Args:
        source: An open model whose ternary matrices are I2_S, TQ1_0 or TQ2_0.
        target: The new file; it appears whole or not at all.
        to: I2_S, TQ1_0, TQ2_0 or F32.
        arch: Another architecture name, for an engine that knows the graph by that name only.

    Raises:
        UsageError: `to` is not one of these, a row does not suit it, or a tensor has several scales.
    """
    if to not in FILE_TYPES:
        raise UsageError(f"cannot transcode to {to.name}", remedy=f"one of {', '.join(t.name for t in FILE_TYPES)}")
    tensors = list(_tensors(source, to))
    written = Path(target)
    written.parent.mkdir(parents=True, exist_ok=True)
    write(written, _metadata(source, to, arch), tensors, alignment=source.alignment)
    return written


def _metadata(source: GGUF, to: GGMLType, arch: str | None) -> dict[str, Any]:
    old = source.get("general.architecture", str)
    out: dict[str, Any] = {}
    for key, value in source.metadata.items():
        renamed = arch + key[len(old) :] if arch and key.startswith(f"{old}.") else key
        out[renamed] = (source.types[key], value)
    if arch:
        out["general.architecture"] = arch
    out["general.file_type"] = FILE_TYPES[to]
    return out


def _tensors(source: GGUF, to: GGMLType) -> Iterator[TensorData]:
    scales = {
        name: _number(source, name) for name in source.tensors if name.endswith(".scale") and _owner(source, name)
    }
    for name, info in source.tensors.items():
        if name in scales:
            continue  # written anew, or multiplied in
        if info.type not in CODECS or not CODECS[info.type].ternary:
            yield TensorData(name=name, shape=info.shape, type=info.type, data=source.raw(name))
            continue
        beside = name.removesuffix(".weight") + ".scale"
        with np.errstate(over="ignore"):
            scale = np.float32(_own_scale(source, info) * scales.get(beside, np.float32(1)))
        if not np.isfinite(scale):
            raise UsageError(f"{name} has a scale that is not finite", where=source.path)
        suits = 128 if to == GGMLType.I2_S else 256 if to in (GGMLType.TQ1_0, GGMLType.TQ2_0) else 1
        if info.shape[-1] % suits:
            raise UsageError(f"{to.name} takes rows of a multiple of {suits}; {name} has {info.shape[-1]}")
        yield TensorData(name=name, shape=info.shape, type=to, data=_encoder(source, info, to, scale))
        if to in (GGMLType.TQ1_0, GGMLType.TQ2_0):
            yield TensorData(
                name=beside, shape=(1,), type=GGMLType.F32, data=np.array([scale], np.float32).view(np.uint8)
            )


def _owner(source: GGUF, name: str) -> bool:
    info = source.tensors.get(name.removesuffix(".scale") + ".weight")
    return info is not None and info.type in CODECS and CODECS[info.type].ternary


def _number(source: GGUF, name: str) -> np.float32:
    info = source.tensors[name]
    if info.type not in CODECS or info.shape != (1,):
        raise UsageError(f"{name} is {info.type.name} {list(info.shape)}; a scale is one float", where=source.path)
    return np.float32(CODECS[info.type].decode(source.raw(name), (1, 1))[0, 0])


def _own_scale(source: GGUF, info: TensorInfo) -> np.float32:
    """The one scale inside a ternary tensor. Raises `UsageError` where blocks differ."""
    unpack = CODECS[info.type].unpack
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


def _encoder(source: GGUF, info: TensorInfo, to: GGMLType, scale: np.float32) -> Callable[[], NDArray[np.uint8]]:
    """Encodes one tensor when the writer asks for it, so that one is in memory at a time."""

    def encode() -> NDArray[np.uint8]:
        unpack = CODECS[info.type].unpack
        assert unpack is not None
        trits = unpack(source.raw(info.name), info.shape, None).trits
        if to == GGMLType.F32:
            return (trits.astype(np.float32) * scale).view(np.uint8)
        if to == GGMLType.I2_S:
            return pack_i2_s(trits, float(scale))
        return (pack_tq1_0 if to == GGMLType.TQ1_0 else pack_tq2_0)(trits)

    return encode
