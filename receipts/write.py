"""Writing a receipt so that at every moment the folder holds either the old one or the new one, whole.

Side files go first, named by their hash, so they never replace anything a receipt still names. The receipt
follows by `os.replace`. Only then are side files removed that no receipt in the folder names any more.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from receipts.codec import canonical, digest_of, pretty
from receipts.errors import ReceiptError
from receipts.record import Receipt, SideFile
from receipts.tables import rows_of

_NAMED = re.compile(rb"rows/([0-9a-f]{64})\.json")


def seal(receipt: Receipt) -> Receipt:
    """The receipt with its digest."""
    return replace(receipt, digest=digest_of(receipt.to_dict()))


def encode(receipt: Receipt) -> bytes:
    """The text of a receipt's file: readable, one form for equal receipts."""
    return (pretty(receipt.to_dict()) + "\n").encode()


def write(
    receipt: Receipt,
    path: str | PathLike[str],
    side_tables: Mapping[str, Iterable[Mapping[str, Any]]] | None = None,
) -> Receipt:
    """Writes a receipt and its side files; an old receipt stays whole until the new one is.

    Args:
        receipt: Its `side_files` and `digest` are set here.
        path: Of the receipt; side files go to `rows/` beside it.
        side_tables: Table → rows, with the columns of `receipts.tables.COLUMNS`. Empty tables are left out.

    Returns:
        The receipt as written.

    Raises:
        ReceiptError: It breaks the schema, or cannot be written; nothing was replaced.
    """
    target = Path(path)
    contents: dict[str, bytes] = {}
    listed = []
    for table, rows in (side_tables or {}).items():
        checked = rows_of(table, rows)
        if not checked:
            continue
        content = canonical(checked)
        digest = hashlib.sha256(content).hexdigest()
        file = f"rows/{digest}.json"
        contents[file] = content
        listed.append(
            SideFile(table=table, file=file, sha256=digest, bytes=len(content), rows=len(checked))  # type: ignore[arg-type]  # rows_of knows the table's name
        )
    sealed = seal(replace(receipt, side_files=tuple(listed)))
    sealed.validate()
    try:
        for file, content in contents.items():
            replace_file(target.parent / file, content)
        replace_file(target, encode(sealed))
        _prune(target.parent)
    except OSError as error:
        raise ReceiptError(f"cannot be written ({error.strerror})", file=str(error.filename or target)) from None
    return sealed


def replace_file(path: Path, content: bytes) -> None:
    """Writes beside, makes it durable, then moves it into place; a device or a pipe is no such place."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:32]}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(beside).chmod(0o666 & ~umask)  # mkstemp's 0600 would hide the receipt from other users' tools
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _prune(folder: Path) -> None:
    """Removes side files that no receipt in `folder` names."""
    named = {name for file in folder.glob("*.json") for name in _NAMED.findall(file.read_bytes())}
    for file in (folder / "rows").glob("*.json"):
        if _NAMED.fullmatch(f"rows/{file.name}".encode()) and file.stem.encode() not in named:
            file.unlink(missing_ok=True)
