"""Reading what a stranger wrote: size, depth and count limits first, then JSON, then types, then the schema.

Nothing outside the receipt's folder is opened, nothing is executed, nothing is fetched.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from os import PathLike
from pathlib import Path
from typing import Any

from receipts.codec import Anything
from receipts.errors import MissingReceiptError, ReceiptError, ReceiptLimitError
from receipts.record import SCHEMA_VERSION, Receipt, SideFile
from receipts.tables import Row, rows_of

#: Limits are a hundred times what a full run writes, and small enough to parse in a second and in 1 GiB.
MAX_RECEIPT_BYTES = 16 * 2**20
MAX_TABLE_BYTES = 64 * 2**20
MAX_ROWS = 1_000_000
#: The records nest ten deep.
MAX_DEPTH = 32

_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_VERSION = re.compile(r"(0|[1-9]\d{0,3})\.(0|[1-9]\d{0,3})(\.(0|[1-9]\d{0,3}))?")
_ROWS_FILE = re.compile(r"rows/[0-9a-f]{64}\.json")


def read(path: str | PathLike[str]) -> Receipt:
    """A receipt: limits, JSON, version, types. Its truth is `receipts.verify`'s question.

    Raises:
        MissingReceiptError: There is no such file.
        ReceiptLimitError: It is larger or deeper than `MAX_RECEIPT_BYTES`, `MAX_DEPTH`.
        ReceiptError: It is not a receipt of a version that is known here; the path says where.
    """
    try:
        return decode(load(path))
    except ReceiptError as error:
        raise (error if error.file else error.inside(os.fspath(path))) from None


def load(path: str | PathLike[str]) -> dict[str, Any]:
    """The JSON object in a receipt's file, within the limits. Raises as `read` does."""
    data = parse(contents(Path(path), MAX_RECEIPT_BYTES), os.fspath(path))
    if not isinstance(data, dict):
        raise ReceiptError("a receipt is a JSON object", file=os.fspath(path))
    return data


def decode(data: dict[str, Any]) -> Receipt:
    """The record in a JSON object. Raises `ReceiptError` on an unknown version, field or type."""
    check_version(data.get("schema_version"))
    return Receipt.from_dict(data)


def check_version(version: object) -> None:
    """Same major, same or older minor. Raises `ReceiptError` otherwise."""
    if version is None:
        raise ReceiptError("required field is missing", path="schema_version")
    match = _VERSION.fullmatch(version) if isinstance(version, str) else None
    if match is None:
        raise ReceiptError(f"{str(version)!r:.60} is not a version", path="schema_version", remedy="such as 1.0.0")
    ours = [int(part) for part in SCHEMA_VERSION.split(".")]
    major, minor = int(match[1]), int(match[2])
    if major != ours[0]:
        raise ReceiptError(
            f"schema {major} is not known here", path="schema_version", remedy=f"this package reads schema {ours[0]}"
        )
    if minor > ours[1]:
        raise ReceiptError(
            f"schema {major}.{minor} is newer than this package",
            path="schema_version",
            remedy=f"upgrade: this one reads up to {ours[0]}.{ours[1]}",
        )


def read_table(receipt_path: str | PathLike[str], side_file: SideFile) -> list[Row]:
    """The rows of a side table.

    Args:
        receipt_path: The receipt that lists it.
        side_file: One of its `side_files`.

    Returns:
        One dict a row, with the columns of `receipts.tables.COLUMNS`.

    Raises:
        ReceiptError: The file is missing, outside the receipt's folder, not the one whose hash is listed, or
            not a table.
    """
    name = side_file.file
    if not _ROWS_FILE.fullmatch(name) or name != f"rows/{side_file.sha256}.json":
        raise ReceiptError(f"{name!r:.80} is not rows/<sha256>.json", path="side_files")
    folder = Path(receipt_path).resolve().parent
    file = folder / name
    if file.resolve() != file:
        raise ReceiptError("a link leads out of the receipt's folder", path="side_files", file=str(file))
    try:
        content = contents(file, MAX_TABLE_BYTES)
    except MissingReceiptError as error:
        raise ReceiptError(
            "side file is missing", path="side_files", file=error.file, remedy="keep rows/ beside the receipt"
        ) from None
    if len(content) != side_file.bytes or hashlib.sha256(content).hexdigest() != side_file.sha256:
        raise ReceiptError("content differs from the listed sha256", path="side_files", file=str(file))
    data = parse(content, str(file))
    if not isinstance(data, list) or len(data) != side_file.rows:
        raise ReceiptError(f"does not hold the {side_file.rows} listed rows", path="side_files", file=str(file))
    if len(data) > MAX_ROWS:
        raise ReceiptLimitError(f"more than {MAX_ROWS} rows", path="side_files", file=str(file))
    return rows_of(side_file.table, data)


def contents(path: Path, limit: int) -> bytes:
    """Content of a regular file of at most `limit` bytes."""
    try:
        # Not blocking, so that a named pipe cannot hold us up; refused below as it is no regular file.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise MissingReceiptError(
            f"cannot be read ({reason})", file=str(path), remedy="`nox -s crossval` writes ci/inference.json"
        ) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise MissingReceiptError("is not a file", file=str(path))
    with os.fdopen(descriptor, "rb") as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise ReceiptLimitError(f"is larger than {limit} bytes", file=str(path))
    return content


def parse(content: bytes, file: str) -> Anything:
    """JSON types. NaN is let through here: the codec refuses it where it can say which field holds it."""
    depth = 0
    for bracket in _STRING.sub(b"", content).translate(None, _NOT_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            raise ReceiptLimitError(f"nests deeper than {MAX_DEPTH}", file=file)
    if not content.strip():
        raise ReceiptError("is empty", file=file)
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_object)
    except ReceiptError as error:
        raise error.inside(file) from None
    except UnicodeDecodeError as error:
        raise ReceiptError(f"is not UTF-8 at byte {error.start}", file=file) from None
    except json.JSONDecodeError as error:
        raise ReceiptError(f"is not JSON: {error.msg} at line {error.lineno}", file=file) from None
    except (ValueError, RecursionError) as error:
        raise ReceiptError(f"is not JSON: {error}", file=file) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuses a key given twice: two readers could take two different values from one signed text."""
    data = dict(pairs)
    if len(data) != len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ReceiptError(f"key {twice!r:.60} is given twice")
    return data
