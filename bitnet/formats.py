"""What a file does not say about its own bytes, and how it is found out: the layout of I2_S, the tiles of TL1 and TL2.

Every reading of such a tensor is a permutation of every other, so each gives weights that look right. But a trained
projection knows its input: columns that multiply related features of the embedding are related themselves. So the
correlation between columns of a projection is compared with that between columns of the embedding, under every
reading. n · r² of n pairs of columns is about 1 where the two have nothing to do with each other, tens where a
permutation leaves some columns in place, and tens to ten thousand for the right reading: a few are added up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bitnet.codecs import CODECS, Codec, Float32, Layout, Tiles, codecs
from bitnet.codecs.tiles import DEFAULT_TILES, PRESETS, parse_kernel_config
from bitnet.errors import BitNetError, ModelFileError, UsageError
from bitnet.gguf import GGUF, GGMLType

#: Metadata key under which `transcode` leaves the tiles it used, as the text of a `kernel_config.ini`.
KERNEL_CONFIG_KEY = "bitnet.kernel_config"
KERNEL_CONFIG_FILE = "kernel_config.ini"
_MAX_CONFIG = 1 << 16  # bytes of a kernel configuration
_COLUMNS = 512  # columns compared: whole groups of I2_S, few enough for a product of milliseconds
_ROWS_AT_ONCE = 16
_ROWS = 512  # rows of a projection, and of the embedding, that are looked at
#: Of four projections together, on the trained models shipped with the tests: the right reading has 1,279 or more, and
#: 79 times the worst wrong one or more. One projection against a shuffled embedding has 38 at most in 2,400 trials.
_DECISIVE = 200.0  # n · r² that the best reading must have
_MARGIN = 10.0  # times the second that it must have
_CLEAR = 1000.0  # n · r² above which no further projection is looked at
_TABLES = (GGMLType.TL1, GGMLType.TL2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Formats:
    """How the tensors of one file are read.

    Attributes:
        codecs: The table of formats for this file.
        layout: Of its I2_S.
        tiles: Of its TL1 and TL2.
        notices: What was found out rather than declared, and how.
    """

    codecs: Mapping[GGMLType, Codec] = field(default_factory=lambda: CODECS)
    layout: Layout = Layout.X86
    tiles: Tiles = field(default_factory=lambda: DEFAULT_TILES)
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One way to read a file's ternary tensors, and the evidence for it (see `evidence`)."""

    name: str
    codecs: Mapping[GGMLType, Codec]
    score: float = 0.0


def read_formats(
    gguf: GGUF, *, kernel_config: str | PathLike[str] | None = None, layout: Layout | None = None
) -> Formats:
    """Find out how a file's tensors are read.

    Args:
        gguf: The open file.
        kernel_config: The `kernel_config.ini` of the build that made it. Default: the file's own (`transcode` leaves
            one), then one beside the file, then the tiles that bitnet.cpp uses for the models it was made for.
        layout: Of its I2_S; default: what the evidence says, and the layout of x86 where it says nothing.

    Raises:
        UsageError: `kernel_config` cannot be read or is none.
        ModelFileError: So for the one that came with the file.
    """
    used = {info.type for info in gguf.tensors.values()}
    notices: list[str] = []
    tiles = DEFAULT_TILES
    if used & set(_TABLES):
        tiles = _tiles(gguf, kernel_config, notices)
    if GGMLType.I2_S in used and layout is None and not gguf.made_here:
        layout = _layout(gguf, tiles, notices)
    layout = layout or Layout.X86
    return Formats(codecs=codecs(layout=layout, tiles=tiles), layout=layout, tiles=tiles, notices=tuple(notices))


def layout_of_known(raw: NDArray[np.uint8], shape: Sequence[int], known: NDArray[np.int8]) -> Layout | None:
    """The layout in which an I2_S tensor holds these trits [n_row, n_col], known from elsewhere; None for none."""
    for layout in _layouts([tuple(shape)]):
        unpack = codecs(layout=layout)[GGMLType.I2_S].unpack
        assert unpack is not None
        if np.array_equal(unpack(raw, shape, None).trits, known):
            return layout
    return None


def evidence(gguf: GGUF, readings: Sequence[Reading]) -> list[Reading]:
    """The readings with their scores, best first: Σ n · r² over projections, looked at until one leads clearly."""
    scored = list(readings)
    columns = _embedding_correlation(gguf)
    if columns is None:
        return scored
    for name in _projections(gguf):
        scored = [
            Reading(name=r.name, codecs=r.codecs, score=r.score + _agreement(gguf, name, r.codecs, columns))
            for r in scored
        ]
        scored.sort(key=lambda r: -r.score)
        if decisive(scored) and scored[0].score >= _CLEAR:
            break
    return scored


def decisive(scored: Sequence[Reading]) -> bool:
    """Whether the first of some readings, best first, leads clearly."""
    second = scored[1].score if len(scored) > 1 else 0.0
    return scored[0].score >= _DECISIVE and scored[0].score >= _MARGIN * second


def _layouts(shapes: Sequence[tuple[int, ...]]) -> list[Layout]:
    fours = all(int(np.prod(shape[:-1])) % 4 == 0 for shape in shapes)
    return [layout for layout in Layout if layout is not Layout.ROWS or fours]


def _layout(gguf: GGUF, tiles: Tiles, notices: list[str]) -> Layout:
    shapes = [info.shape for info in gguf.tensors.values() if info.type == GGMLType.I2_S]
    readings = [Reading(name=layout.name, codecs=codecs(layout=layout, tiles=tiles)) for layout in _layouts(shapes)]
    scored = evidence(gguf, readings)
    if not decisive(scored):
        notices.append(
            "nothing in the weights tells which layout of I2_S they have (do they come from training?); "
            f"read as {Layout.X86.value}, that of the published files"
        )
        return Layout.X86
    found = Layout[scored[0].name]
    if found is not Layout.X86:
        notices.append(f"I2_S is read in another layout than the usual: {found.value} ({_lead(scored)})")
    return found


def _lead(scored: Sequence[Reading]) -> str:
    return (
        f"its columns agree with the embedding's: evidence {scored[0].score:.0f}, "
        f"{max(r.score for r in scored[1:]):.0f} for any other reading"
    )


def tiles_of_build(kernel_config: str | PathLike[str]) -> Tiles:
    """The tiles of a build's `kernel_config.ini`, and the default ones for shapes that it does not name.

    Raises:
        UsageError: It cannot be read, or is none.
    """
    return {**DEFAULT_TILES, **parse_kernel_config(_text(Path(kernel_config), UsageError), str(kernel_config))}


def _tiles(gguf: GGUF, kernel_config: str | PathLike[str] | None, notices: list[str]) -> Tiles:
    if kernel_config is not None:
        return tiles_of_build(kernel_config)
    own = gguf.metadata.get(KERNEL_CONFIG_KEY)
    beside = gguf.path.with_name(KERNEL_CONFIG_FILE)
    try:
        if isinstance(own, str):
            return {**DEFAULT_TILES, **parse_kernel_config(own, f"{gguf.path} ({KERNEL_CONFIG_KEY})")}
        if beside.is_file():
            notices.append(f"the tiles of TL1 and TL2 are those of {beside.name} beside the file")
            return {**DEFAULT_TILES, **parse_kernel_config(_text(beside, ModelFileError), str(beside))}
    except UsageError as error:
        raise ModelFileError(error.what, where=error.where, remedy=error.remedy) from None
    return _preset(gguf, notices)


def _preset(gguf: GGUF, notices: list[str]) -> Tiles:
    """The preset tiles; where presets differ for shapes of this file, those that the evidence speaks for."""
    shapes = {(i.type, *i.shape) for i in gguf.tensors.values() if i.type in _TABLES and len(i.shape) == 2}
    distinct: dict[tuple[object, ...], str] = {}
    for name, tiles in PRESETS.items():
        distinct.setdefault(tuple(tiles.get(shape) for shape in sorted(shapes)), name)
    if len(distinct) == 1:
        return DEFAULT_TILES
    scored = evidence(gguf, [Reading(name=n, codecs=codecs(tiles=PRESETS[n])) for n in distinct.values()])
    name = scored[0].name
    why = _lead(scored) if decisive(scored) else "nothing in the weights tells which; a kernel_config.ini would"
    notices.append(f"the tiles of TL1 and TL2 are taken to be those of {name} ({why})")
    return PRESETS[name]


def _text(path: Path, error: type[BitNetError]) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_CONFIG + 1)
        if len(raw) > _MAX_CONFIG:
            raise error(f"is larger than {_MAX_CONFIG} bytes", where=path, remedy="it is no kernel configuration")
        return raw.decode()
    except (OSError, UnicodeDecodeError) as reason:
        raise error(f"cannot be read: {reason}", where=path, remedy="check the path") from None


def _projections(gguf: GGUF) -> Iterator[str]:
    """Ternary matrices that multiply the residual stream: of the first layer and the last."""
    blocks = {int(part) for name in gguf.tensors if (part := name.removeprefix("blk.").partition(".")[0]).isdecimal()}
    for il in sorted({min(blocks), max(blocks)} if blocks else ()):
        for name in (f"blk.{il}.ffn_gate.weight", f"blk.{il}.attn_q.weight"):
            info = gguf.tensors.get(name)
            if info is not None and len(info.shape) == 2 and info.type in (GGMLType.I2_S, *_TABLES):
                yield name


def _embedding_correlation(gguf: GGUF) -> Float32 | None:
    """Correlations between columns of the embedding, or None where it has none that can be read."""
    info = gguf.tensors.get("token_embd.weight")
    codec = CODECS.get(info.type) if info is not None else None
    if info is None or codec is None or codec.ternary or len(info.shape) != 2:
        return None
    spread = gguf.raw(info.name).reshape(info.shape[0], -1)[:: -(-info.shape[0] // _ROWS)]
    rows = np.empty(spread.shape, np.uint8)
    for begin in range(0, len(rows), _ROWS_AT_ONCE):  # a row far from others can map megabytes around it
        rows[begin : begin + _ROWS_AT_ONCE] = spread[begin : begin + _ROWS_AT_ONCE]
        gguf.release()
    values = codec.decode(rows.reshape(-1), (len(rows), info.shape[1]))
    if not np.isfinite(values).all():
        return None
    return _correlation(values)


def _agreement(gguf: GGUF, name: str, table: Mapping[GGMLType, Codec], columns: Float32) -> float:
    """The n · r² between the correlations of a projection's columns and those of the embedding's."""
    info = gguf.tensors[name]
    unpack = table[info.type].unpack
    assert unpack is not None
    try:
        trits = unpack(gguf.raw(name), info.shape, slice(0, min(_ROWS, info.shape[0]))).trits
    except BitNetError:
        return 0.0  # this reading is impossible, or the file is damaged, which reading it will tell
    if min(trits.shape[1], _COLUMNS) != len(columns):
        return 0.0  # a wrong shape, which reading it will tell
    return _shared(_correlation(trits), columns)


def _shared(one: Float32, other: Float32) -> float:
    """The n · r² between two symmetric matrices, off their diagonals."""
    n = len(one)
    a, b = (m - (m.sum(dtype=np.float64) - np.trace(m)) / (n * (n - 1)) for m in (one, other))
    np.fill_diagonal(a, 0)
    np.fill_diagonal(b, 0)
    power = float(np.vdot(a, a)) * float(np.vdot(b, b))
    return n * (n - 1) / 2 * float(np.vdot(a, b)) ** 2 / power if power else 0.0


def _correlation(values: NDArray[np.float32] | NDArray[np.int8]) -> Float32:
    """Cosines between the first columns, [n, n] f32; 0 for a column of zeros."""
    part = values[:, :_COLUMNS].astype(np.float32)
    length = np.sqrt((part**2).sum(axis=0))
    part /= np.where(length == 0, np.float32(1), length)
    return part.T @ part
