"""Packed weights kept between starts, so that a second start maps them where the first one made them.

A model of two thousand million weights takes up to two seconds to repack, most of them spent on memory that the system
must first provide; mapping a file takes none, and programs that run the same model share its memory.

**When it may be used.** The name of a kept file is a digest of everything its content depends on:

- which file the model is: inode, size, time of modification and time of change of each shard. The system sets the time
  of change at every write, and no program can set it; renaming or copying a model makes it another, which costs one
  repacking.
- what it says of its tensors, and a thousand bytes from the beginning, the middle and the end of each: should a file
  system keep coarse times or none;
- the layout, this package's version and the sources that read and pack.

A model that was changed within the last seconds is not kept, since the clock of its file system may be too coarse to
show the next change. What is kept was read, checked and packed by a load that succeeded.

Files are written beside their name and renamed, by a thread that the caller does not wait for; another process that
writes the same one is left to it. The least recently used ones are removed when all would take more than
`BITNET_PACKED_CACHE` (8GB; 0 keeps and reads none). Where nothing can be written, or the disk is nearly full, nothing
is, and no one need know: the next start packs again.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import shutil
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING

import platformdirs

import bitnet
from bitnet.codecs import Layout as Layouts
from bitnet.codecs import codecs
from bitnet.errors import UsageError
from bitnet.formats import Formats
from bitnet.gguf import GGUF, GGMLType, TensorInfo, identity
from bitnet.kernels.variants import Layout
from bitnet.limits import parse_bytes
from bitnet.linear import TernaryMatrix
from bitnet.packed_file import PackedFile, open_packed, write_packed

if TYPE_CHECKING:
    from bitnet.weights import Weights

VARIABLE = "BITNET_PACKED_CACHE"
_DEFAULT = 8_000_000_000  # bytes: the largest published models several times over
#: Types that are kept. How TL1 and TL2 are read may depend on a file beside the model.
_KEPT = (GGMLType.I2_S, GGMLType.TQ1_0, GGMLType.TQ2_0)
#: Bytes of ternary tensors below which packing takes milliseconds.
SMALLEST = 32 << 20
#: Seconds after its last change before a model is kept: the coarsest clock of a file system in use (FAT) has two.
_SETTLED = 5.0
_SPARE = 2 << 30  # bytes that must be left on the disk
_SAMPLE = 1024  # bytes of a tensor, at each of three places
_ABANDONED = 600.0  # seconds without a write, after which a file in the making is nobody's
_PATIENCE = 20.0  # seconds that the end of the process waits for the file in the making
_SOURCES = (
    *("codecs/*.py", "formats.py", "weights.py", "weight_statistics.py"),
    *("kernels/packing.py", "kernels/row_tiles.py", "packed_file.py"),
)


def limit() -> int:
    """Bytes that kept files may take, 0 for none. Raises `UsageError` for nonsense in BITNET_PACKED_CACHE."""
    text = os.environ.get(VARIABLE, "").strip()
    if text == "0":
        return 0
    try:
        return parse_bytes(text, where=VARIABLE) if text else _DEFAULT
    except UsageError as error:
        raise UsageError(error.what, where=VARIABLE, remedy="a size such as 8GB, or 0 for none") from None


def folder() -> Path:
    """Where files are kept."""
    return Path(platformdirs.user_cache_dir("bitnet-crossval")) / "packed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """The place of one model, as it is now, in one layout.

    Attributes:
        gguf: The model.
        layout: Of its packed matrices.
        key: The digest that names its file.
    """

    gguf: GGUF
    layout: Layout
    key: str

    @property
    def path(self) -> Path:
        """Its file, there or not."""
        return folder() / f"{self.key}.packed"

    def open(self) -> PackedFile | None:
        """What was kept, mapped, its content being checked; None where nothing was, or nothing of use."""
        found = open_packed(self.path, self.key)
        if found is None or found.matrices.keys() != _names(self.gguf):
            return None
        with contextlib.suppress(OSError):
            os.utime(self.path)  # the last use decides which one is removed first
        return found

    def discard(self) -> None:
        """Remove what was kept: it turned out to be damaged."""
        with contextlib.suppress(OSError):
            self.path.unlink()

    def keep(self, weights: Weights) -> Thread | None:
        """Begin to keep packed weights; the thread that does, or None where they are not kept."""
        matrices = [m for m in weights.projections() if isinstance(m, TernaryMatrix)]
        n_bytes = sum(m.tiles.data.nbytes for m in matrices)
        if (
            n_bytes > limit()
            or any(m.block_scale is not None or m.tiles.layout != self.layout for m in matrices)
            or {m.name for m in matrices} != _names(self.gguf)
            or not _settled(self.gguf)
            or _key(self.gguf, self.layout) != self.key  # it was changed while it was read
        ):
            return None
        writer = _Writer(
            self, matrices, {"i2_s": weights.formats.layout.name, "notices": list(weights.formats.notices)}
        )
        writer.start()
        return writer


def entry(gguf: GGUF, layout: Layout) -> Entry | None:
    """The place of a model; None for one that is not kept: small, of other types, not in a file of its own.

    Raises:
        UsageError: BITNET_PACKED_CACHE has no meaning.
    """
    key = _key(gguf, layout) if limit() else None
    return None if key is None else Entry(gguf=gguf, layout=layout, key=key)


def formats(kept: PackedFile) -> Formats | None:
    """How the tensors of the model were read when it was kept; None if that is not known."""
    layout, notices = str(kept.about.get("i2_s")), kept.about.get("notices")
    if layout not in Layouts.__members__ or not isinstance(notices, list):
        return None
    found = Layouts[layout]
    return Formats(codecs=codecs(layout=found), layout=found, notices=tuple(map(str, notices)))


class _Writer(Thread):
    """Writes one file. The end of the process waits for it a while, then leaves it unwritten."""

    def __init__(self, entry: Entry, matrices: list[TernaryMatrix], about: dict[str, object]) -> None:
        super().__init__(name="bitnet-keep", daemon=True)
        self._entry, self._matrices, self._about = entry, matrices, about
        self._stop_asked = Event()

    def start(self) -> None:
        atexit.register(self._end)
        super().start()

    def run(self) -> None:
        with contextlib.suppress(OSError):  # a disk that is full or read-only after all
            self._write()
        atexit.unregister(self._end)
        self._matrices = []

    def _write(self) -> None:
        path, n_bytes = self._entry.path, sum(m.tiles.data.nbytes for m in self._matrices)
        path.parent.mkdir(parents=True, exist_ok=True)
        made = path.with_suffix(".part")
        _make_room(path.parent, limit() - n_bytes)
        if shutil.disk_usage(path.parent).free < n_bytes + _SPARE:
            return
        try:
            whole = write_packed(made, self._entry.key, self._matrices, self._about, self._stop_asked.is_set)
        except FileExistsError:
            return  # another process writes it
        except OSError:
            made.unlink(missing_ok=True)
            raise
        if whole:
            made.replace(path)
        else:
            made.unlink(missing_ok=True)

    def _end(self) -> None:
        self.join(_PATIENCE)
        self._stop_asked.set()
        self.join()


def _make_room(where: Path, room: int) -> None:
    """Remove files in the making that were given up, and the least recently used until all take at most `room`."""
    kept = []
    for path in where.iterdir():
        status = path.stat()
        if path.suffix == ".part":
            if time.time() - status.st_mtime > _ABANDONED:
                path.unlink(missing_ok=True)
        elif path.suffix == ".packed":
            kept.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in kept)
    for _, size, path in sorted(kept):
        if total <= room:
            break
        path.unlink(missing_ok=True)
        total -= size


def _ternary(gguf: GGUF) -> list[TensorInfo]:
    return [info for info in gguf.tensors.values() if info.type in _KEPT]


def _names(gguf: GGUF) -> set[str]:
    return {info.name for info in _ternary(gguf)}


def _settled(gguf: GGUF) -> bool:
    """Whether the last change of a model lies so far back that a clock shows the next one."""
    last = max(max(s.st_mtime, s.st_ctime) for s in map(os.stat, gguf.paths))
    return abs(time.time() - last) > _SETTLED


def _key(gguf: GGUF, layout: Layout) -> str | None:
    """The digest that names a model's file; None for what is not kept."""
    if gguf.made_here or layout == "rows" or sum(info.n_bytes for info in _ternary(gguf)) < SMALLEST:
        return None
    digest = hashlib.sha256(f"{bitnet.__version__} {_code()} {layout}\n".encode())
    for path, opened in zip(gguf.paths, gguf.identities, strict=True):
        try:
            now = path.stat()
        except OSError:
            return None
        if identity(now) != opened:
            return None  # the path has come to mean another file
        digest.update(f"{now.st_ino} {now.st_size} {now.st_mtime_ns} {now.st_ctime_ns}\n".encode())
    for info in gguf.tensors.values():
        digest.update(f"{info}\n".encode())
        raw = gguf.raw(info.name)
        for begin in (0, len(raw) // 2, max(0, len(raw) - _SAMPLE)):
            digest.update(raw[begin : begin + _SAMPLE].data)
    return digest.hexdigest()


@cache
def _code() -> str:
    """A digest of the sources that read and pack weights."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for pattern in _SOURCES:
        for source in sorted(here.glob(pattern)):
            digest.update(source.read_bytes())
    return digest.hexdigest()
