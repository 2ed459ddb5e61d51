"""Where receipts lie: files, folders, JSON Lines, zip and tar archives, one after another and none of them trusted.

Nothing is unpacked: a member is read into memory within the limits of a receipt, so its name is only ever shown.
Links, devices and whatever is no `.json` or `.jsonl` are passed over, as are side files (`rows/`).
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

from receipts.errors import MissingReceiptError, ReceiptError, ReceiptLimitError
from receipts.read import MAX_RECEIPT_BYTES

#: Receipts of all places; ten years of a dozen a day.
MAX_RECEIPTS = 50_000
#: Members of one archive, and their unpacked bytes: whatever packs more is a bomb.
MAX_MEMBERS = 2 * MAX_RECEIPTS
MAX_UNPACKED = 16 * 2**30
#: Directory of a zip archive, which is read at once.
MAX_DIRECTORY = 32 * 2**20
#: What its name shows: a path to be read, or the bytes of a line or a member.
Source = tuple[str, Path | bytes]

_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
_COMPRESSED: tuple[tuple[bytes, Callable[[BinaryIO], Any]], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ\0", lzma.open),
)
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, ValueError, zlib.error, lzma.LZMAError)


def sources(places: Sequence[Path]) -> Iterator[Source]:
    """Every receipt in files, folders, JSON Lines and archives.

    Raises:
        MissingReceiptError: A place does not exist.
        ReceiptLimitError: There are more than `MAX_RECEIPTS`, or an archive is a bomb.
        ReceiptError: An archive is damaged.
    """
    n = 0
    for place in places:
        for source in _of(place):
            n += 1
            if n > MAX_RECEIPTS:
                raise ReceiptLimitError(f"more than {MAX_RECEIPTS} receipts", file=str(place))
            yield source


def _of(place: Path) -> Iterator[Source]:
    if place.is_dir():
        for path in sorted(place.rglob("*.json")):
            if path.parent.name != "rows" and path.is_file() and not path.is_symlink():
                yield str(path), path
    elif not place.is_file():
        raise MissingReceiptError("there is no such file or folder", file=str(place))
    elif place.suffix == ".jsonl":
        with place.open("rb") as stream:
            yield from _lines(str(place), stream)
    elif place.name.endswith(_ARCHIVES):
        yield from _archive(place)
    else:
        yield str(place), place


def _lines(name: str, stream: IO[bytes]) -> Iterator[Source]:
    number = 0
    while line := stream.readline(MAX_RECEIPT_BYTES + 1):
        number += 1
        if len(line) > MAX_RECEIPT_BYTES:
            raise ReceiptLimitError(f"is longer than {MAX_RECEIPT_BYTES} bytes", file=f"{name}:{number}")
        if line.strip():
            yield f"{name}:{number}", line


def _archive(place: Path) -> Iterator[Source]:
    try:
        with place.open("rb") as file:
            members = _zip(place, file) if place.suffix == ".zip" else _tar(place, file)
            for name, size, stream in members:
                told = f"{place}!{name}"
                path = PurePosixPath(name)
                if path.parent.name == "rows" or path.suffix not in (".json", ".jsonl"):
                    continue
                if path.suffix == ".jsonl":
                    yield from _lines(told, stream)
                elif size > MAX_RECEIPT_BYTES:
                    raise ReceiptLimitError(f"is larger than {MAX_RECEIPT_BYTES} bytes", file=told)
                else:
                    yield told, stream.read(MAX_RECEIPT_BYTES)
    except _DAMAGED as error:
        raise ReceiptError(f"is no archive that can be read: {error}"[:200], file=str(place)) from None


def _within(place: Path, n: int, unpacked: int) -> None:
    if n > MAX_MEMBERS or unpacked > MAX_UNPACKED:
        raise ReceiptLimitError("packs more than any collection of receipts", file=str(place))


def _zip(place: Path, file: BinaryIO) -> Iterator[tuple[str, int, IO[bytes]]]:
    _small_directory(place, file)
    with zipfile.ZipFile(file) as archive:
        unpacked = 0
        for n, member in enumerate(archive.infolist(), 1):
            unpacked += member.file_size
            _within(place, n, unpacked)
            if member.is_dir() or member.flag_bits & 1:  # an encrypted member cannot be read
                continue
            with archive.open(member) as stream:
                yield member.filename, member.file_size, stream


def _small_directory(place: Path, file: BinaryIO) -> None:
    """Refuses a zip archive whose directory alone would fill the memory; the library reads it at once."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - 2**16 - 42))
    tail = file.read()
    at = len(tail) - 22 if tail[-22:-18] == b"PK\5\6" and tail[-2:] == b"\0\0" else tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < 22:
        raise zipfile.BadZipFile("no directory")
    directory = int.from_bytes(tail[at + 12 : at + 16], "little")
    if directory > MAX_DIRECTORY or tail[max(0, at - 20) : at][:4] == b"PK\6\7":
        raise ReceiptLimitError("has a directory larger than any collection of receipts", file=str(place))


class _Bounded(io.RawIOBase):
    """A stream that refuses to be read in pieces larger than any receipt, and beyond an archive's limit."""

    def __init__(self, place: Path, stream: IO[bytes]) -> None:
        super().__init__()
        self._place, self._stream = place, stream

    def read(self, size: int = -1) -> bytes:
        """As any stream; a header that claims a giant value is refused before it is held."""
        if not 0 <= size <= MAX_RECEIPT_BYTES:
            raise ReceiptLimitError("holds a header larger than any receipt", file=str(self._place))
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Forward, which unpacks what is passed over."""
        if offset > MAX_UNPACKED:
            raise ReceiptLimitError("packs more than any collection of receipts", file=str(self._place))
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        """Unpacked bytes so far."""
        return self._stream.tell()

    def seekable(self) -> bool:
        """As tarfile asks."""
        return True


def _tar(place: Path, file: BinaryIO) -> Iterator[tuple[str, int, IO[bytes]]]:
    head = file.read(6)
    file.seek(0)
    stream: Any = next((opened(file) for magic, opened in _COMPRESSED if head.startswith(magic)), file)
    unpacked = 0
    with tarfile.open(fileobj=_Bounded(place, stream), mode="r:") as archive:
        for n, member in enumerate(archive, 1):
            unpacked += max(member.size, 0)
            _within(place, n, unpacked)
            if member.isreg() and not member.issparse() and (content := archive.extractfile(member)) is not None:
                yield member.name, member.size, content
