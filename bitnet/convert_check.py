"""What was written, read back: every weight equal to what is due, and how far that is from the source."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitnet.codecs import Codec, Layout
from bitnet.errors import ModelFileError
from bitnet.formats import read_formats
from bitnet.gguf import GGUF, GGMLType
from bitnet.parts import Part, row_blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How the weights of one tensor differ from its source, because its type holds less.

    Attributes:
        n: Weights that differ.
        max_abs: The largest difference.
    """

    n: int = 0
    max_abs: float = 0.0


def check(
    source: GGUF, target: GGUF, parts: list[Part], progress: Callable[[Part], None] = lambda _: None
) -> tuple[Change, ...]:
    """Compare every weight of `target` with what it must be.

    Args:
        source: Where the parts come from.
        target: What was written, opened.
        parts: Its tensors.
        progress: Told each before it is compared.

    Returns:
        One `Change` a part.

    Raises:
        ModelFileError: A tensor is missing, or a weight is not what it must be.
    """
    table = read_formats(target, layout=Layout.X86).codecs
    changes = []
    for part in parts:
        progress(part)
        found = target.tensors.get(part.name)
        if found is None or found.shape != part.shape:
            raise _differs(part, target, "is missing")
        changes.append(_bytes(part, target) if part.expected is None else _weights(part, source, target, table))
        source.release()
        target.release()
    return tuple(changes)


def _bytes(part: Part, target: GGUF) -> Change:
    found, begin = target.raw(part.name), 0
    for piece in part.pieces():
        due = np.ascontiguousarray(piece).reshape(-1).view(np.uint8)
        if not np.array_equal(due, found[begin : begin + len(due)]):
            raise _differs(part, target, "differs")
        begin += len(due)
        target.release()
    if begin != len(found):
        raise _differs(part, target, f"has {len(found)} bytes, not {begin}")
    return Change()


def _weights(part: Part, source: GGUF, target: GGUF, table: Mapping[GGMLType, Codec]) -> Change:
    assert part.expected is not None
    found, due = _reader(target, part.name, table), part.expected()
    original = part.original() if part.original is not None else None
    n, max_abs = 0, 0.0
    for rows in row_blocks(part.shape):
        ours = found(rows)
        if not np.array_equal(ours, due(rows)):
            raise _differs(part, target, f"differs in rows {rows.start} to {rows.stop - 1}")
        if original is not None:
            apart = np.abs(ours - original(rows))
            n += int(np.count_nonzero(apart))
            max_abs = max(max_abs, float(apart.max()))
        source.release()
        target.release()
    return Change(n=n, max_abs=max_abs)


def _reader(target: GGUF, name: str, table: Mapping[GGMLType, Codec]) -> Callable[[slice], NDArray[np.float32]]:
    """The weights of some rows, as the format of the target defines them."""
    info, raw = target.tensors[name], target.raw(name)
    beside = name.removesuffix(".weight") + ".scale"
    scale = np.float32(target.raw(beside).view(np.float32)[0]) if beside in target.tensors else np.float32(1)
    codec = table[info.type]
    unpack = codec.unpack
    if unpack is not None:
        return lambda rows: unpack(raw, info.shape, rows).dense() * scale
    n_row, n_col = math.prod(info.shape[:-1]), info.shape[-1]
    by_row = raw.reshape(n_row, -1)
    return lambda rows: codec.decode(by_row[rows].reshape(-1), (rows.stop - rows.start, n_col)) * scale


def _differs(part: Part, target: GGUF, what: str) -> ModelFileError:
    return ModelFileError(
        f"tensor {part.name} {what} after it was written; nothing is kept",
        where=target.path,
        remedy="the disk or the memory of this machine may be at fault; convert again",
    )
