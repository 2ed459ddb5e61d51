"""Where each tensor lies, and whether the file can be read as it says: types, sizes, offsets, overlaps, gaps.

Type numbers 36–39 mean bitnet.cpp's types there and other things in ggml. They are read as bitnet.cpp's for its
architectures, or where the space each tensor has in the file is exactly what bitnet.cpp's formula gives.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass
from itertools import pairwise
from typing import NoReturn

from bitnet import gguf_types as g
from bitnet.errors import GGUFError
from bitnet.gguf_header import Header, RawTensor
from bitnet.gguf_types import GGMLType, TensorInfo, align_up, shape_fault, tensor_bytes

#: Numbers that no engine may write any more, or that this one does not know, and what they stand for elsewhere.
FOREIGN_TYPES: dict[int, str] = {
    4: "Q4_2, retired by ggml",
    5: "Q4_3, retired by ggml",
    31: "Q4_0_4_4, retired by ggml",
    32: "Q4_0_4_8, retired by ggml",
    33: "Q4_0_8_8, retired by ggml",
    40: "NVFP4 of newer ggml",
    41: "Q1_0 of newer ggml",
    42: "Q2_0 of newer ggml, or TL2 of a newer bitnet.cpp",
}

#: ggml's own reading of the numbers that bitnet.cpp uses: name, elements and bytes of a block.
_OTHER_READING: dict[GGMLType, tuple[str, int, int]] = {
    GGMLType.I2_S: ("IQ4_NL_4_4, retired by ggml", 32, 18),
    GGMLType.I8_S: ("IQ4_NL_4_8, retired by ggml", 32, 18),
    GGMLType.TL1: ("IQ4_NL_8_8, retired by ggml", 32, 18),
    GGMLType.TL2: ("MXFP4 of newer ggml", 32, 17),
}
_DAMAGED = "the file is damaged or was not written completely; download or convert it again"
_PADDING_READ = 4096  # bytes of padding looked at after each tensor, so that opening reads little
_NOTICES = 8  # of one kind that are spelled out


@dataclass(frozen=True, slots=True)
class _Span:
    """A tensor and the bytes from its first to the next tensor's first, or to the end of the file."""

    raw: RawTensor
    type: GGMLType
    begin: int
    room: int
    is_last: bool


def place(
    header: Header, buffer: mmap.mmap | bytes, path: str, arch: object = None
) -> tuple[dict[str, TensorInfo], tuple[str, ...]]:
    """Check every tensor's type, size and place.

    Args:
        header: What was parsed.
        buffer: The whole file.
        path: For messages.
        arch: Architecture, where it is not in this header: that of the first shard.

    Returns:
        The tensors in the order of the header, and what is odd but harmless.

    Raises:
        GGUFError: A tensor cannot lie where the header says.
    """
    size, alignment = len(buffer), header.alignment
    start = align_up(header.end, alignment)
    arch = header.metadata.get("general.architecture", arch)
    readings: list[str] = []
    spans = _spans(header, start, size, path)
    infos = [_info(span, arch, alignment, path, readings) for span in spans]
    for info, span in zip(infos, spans, strict=True):
        if info.offset + info.n_bytes > size and span.is_last:
            missing = info.offset + info.n_bytes - size
            _fail(f"the file is truncated: {missing} bytes of its data are missing", path, span.raw, size)
    for left, right in pairwise(infos):
        if left.offset + left.n_bytes > right.offset:
            raw = next(t for t in header.tensors if t.name == right.name)
            _fail(f"overlaps tensor {left.name}, which ends at byte {left.offset + left.n_bytes}", path, raw)
    notices = _first(readings) + _odd_spaces(infos, header, buffer, min(start, size))
    by_name = {info.name: info for info in infos}
    return {t.name: by_name[t.name] for t in header.tensors}, tuple(notices)


def _fail(reason: str, path: str, raw: RawTensor, at: int | None = None, remedy: str = _DAMAGED) -> NoReturn:
    raise GGUFError(reason, path=path, field=f"tensor {raw.name}", offset=raw.at if at is None else at, remedy=remedy)


def _spans(header: Header, start: int, size: int, path: str) -> list[_Span]:
    """Tensors by offset; ties keep the header's order, and will be found to overlap."""
    placed = []
    for raw in header.tensors:
        type_ = _type(raw, path)
        if raw.offset % header.alignment:
            _fail(f"its offset {raw.offset} is not a multiple of the alignment {header.alignment}", path, raw)
        if raw.offset > g.MAX_INT64 - start:
            _fail(f"its offset {raw.offset} overflows 63 bits", path, raw)
        if start + raw.offset >= size:
            _fail(
                f"its data begins at byte {start + raw.offset}, past the end of the file ({size} bytes): "
                "the file is truncated or the offset is wrong",
                path,
                raw,
            )
        placed.append((start + raw.offset, type_, raw))
    placed.sort(key=lambda t: t[0])
    ends = [begin for begin, _, _ in placed][1:] + [size] * bool(placed)
    return [
        _Span(raw, type_, begin, end - begin, i == len(placed) - 1)
        for i, ((begin, type_, raw), end) in enumerate(zip(placed, ends, strict=True))
    ]


def _type(raw: RawTensor, path: str) -> GGMLType:
    if raw.type_number in FOREIGN_TYPES:
        _fail(
            f"type {raw.type_number} is {FOREIGN_TYPES[raw.type_number]}",
            path,
            raw,
            remedy="convert the model to I2_S, TQ2_0, TQ1_0, F16 or BF16",
        )
    try:
        return GGMLType(raw.type_number)
    except ValueError:
        _fail(f"type {raw.type_number} is unknown", path, raw)


def _info(span: _Span, arch: object, alignment: int, path: str, readings: list[str]) -> TensorInfo:
    raw, type_ = span.raw, span.type
    shape = raw.dims[::-1]
    if type_ in _OTHER_READING:
        _check_reading(span, arch, alignment, path, readings)
    fault = shape_fault(type_, shape)
    if fault is not None:
        _fail(fault, path, raw)
    n_bytes = tensor_bytes(type_, shape)
    if n_bytes > g.MAX_INT64 - span.begin:
        _fail(f"its end, {n_bytes} bytes after byte {span.begin}, overflows 63 bits", path, raw)
    return TensorInfo(name=raw.name, shape=shape, type=type_, offset=span.begin, n_bytes=n_bytes)


def _fits(n_bytes: int, span: _Span, alignment: int) -> bool:
    """Whether a size fills the room of a tensor exactly, padding apart."""
    return span.room == align_up(n_bytes, alignment) or (span.is_last and span.room == n_bytes)


def _check_reading(span: _Span, arch: object, alignment: int, path: str, readings: list[str]) -> None:
    """Refuse types 36–39 where they may be ggml's, and say so where only the sizes speak for bitnet.cpp's."""
    raw, type_ = span.raw, span.type
    shape = raw.dims[::-1]
    other, block, block_bytes = _OTHER_READING[type_]
    ours_fits = shape_fault(type_, shape) is None and _fits(tensor_bytes(type_, shape), span, alignment)
    other_fits = shape[-1] % block == 0 and _fits(math.prod(shape) // block * block_bytes, span, alignment)
    is_theirs = isinstance(arch, str) and (arch.startswith("bitnet") or (arch == "llama" and type_ != GGMLType.TL2))
    if ours_fits and is_theirs:
        return
    if ours_fits and not other_fits:
        readings.append(f"tensor {raw.name}: type {type_:d} is read as bitnet.cpp's {type_.name} because its size fits")
        return
    if is_theirs and not other_fits:
        return  # sizes that fit neither reading are a fault of bitnet.cpp's, and reported as such
    _fail(
        f"type {type_:d} is {type_.name} of bitnet.cpp or {other}; architecture {arch!r} and a room of {span.room} "
        f"bytes for shape {list(shape)} do not say that it is the first",
        path,
        raw,
        remedy="convert the model to TQ2_0 or TQ1_0, whose numbers mean one thing everywhere",
    )


def _odd_spaces(infos: list[TensorInfo], header: Header, buffer: mmap.mmap | bytes, start: int) -> list[str]:
    """Gaps, trailing bytes and padding that is not zero; tensors come by offset."""
    size = len(buffer)
    gaps, unclean = [], []
    used = [(header.end, start, "the header")]
    used += [(i.offset + i.n_bytes, i.offset + i.n_bytes, f"tensor {i.name}") for i in infos]
    begins = [i.offset for i in infos] + [size]
    for (end, least, name), begin in zip(used, begins, strict=True):
        padded = min(align_up(least, header.alignment), begin)
        if any(buffer[end : min(padded, end + _PADDING_READ)]):
            unclean.append(f"the padding after {name} is not zero, at byte {end}")
        if begin > padded:
            what = "trailing bytes" if begin == size else "bytes belong to no tensor"
            gaps.append(f"{begin - padded} {what} after {name}, at byte {padded}")
    return _first(gaps) + _first(unclean)


def _first(notices: list[str]) -> list[str]:
    """The first few, and how many more."""
    more = len(notices) - _NOTICES
    return notices if more <= 0 else [*notices[:_NOTICES], f"and {more} more like it"]
