"""Many receipts as rows: when, which commit, which machine, what passed, how fast beside the peer."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from receipts.baseline import machine_kind, ratios
from receipts.codec import digest_of
from receipts.errors import MissingReceiptError, ReceiptError, ReceiptLimitError
from receipts.read import MAX_RECEIPT_BYTES, decode, load, parse
from receipts.record import Receipt

#: Receipts of one folder or file; ten years of a dozen a day.
MAX_RECEIPTS = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One receipt of a history.

    Attributes:
        file: Where it was found.
        timestamp, commit, machine, parity, passed, required, deviations: Of the receipt.
        decode: Median ratio of the engine's decoding speed to its peer's, over models; None without one.
        problem: Why it could not be read; "" if it could.
    """

    file: str
    timestamp: str = ""
    commit: str = ""
    machine: str = ""
    parity: str = ""
    passed: int = 0
    required: int = 0
    deviations: int = 0
    decode: float | None = None
    problem: str = ""


def history(places: Sequence[Path]) -> tuple[Entry, ...]:
    """Every receipt in files, folders and JSON Lines, oldest first; what is none is listed with its problem.

    Raises:
        MissingReceiptError: A place does not exist.
        ReceiptLimitError: There are more than `MAX_RECEIPTS`.
    """
    found: list[Entry] = []
    for place in places:
        for entry in _entries(place):
            found.append(entry)
            if len(found) > MAX_RECEIPTS:
                raise ReceiptLimitError(f"more than {MAX_RECEIPTS} receipts", file=str(place))
    return tuple(sorted(found, key=lambda entry: (entry.timestamp, entry.file)))


def _entries(place: Path) -> Iterator[Entry]:
    if place.is_dir():
        for path in sorted(place.rglob("*.json")):
            if path.parent.name != "rows" and path.is_file() and not path.is_symlink():
                yield _entry(str(path), path)
    elif not place.is_file():
        raise MissingReceiptError("there is no such file or folder", file=str(place))
    elif place.suffix == ".jsonl":
        yield from _lines(place)
    else:
        yield _entry(str(place), place)


def _lines(path: Path) -> Iterator[Entry]:
    with path.open("rb") as stream:
        number = 0
        while line := stream.readline(MAX_RECEIPT_BYTES + 1):
            number += 1
            name = f"{path}:{number}"
            if len(line) > MAX_RECEIPT_BYTES:
                raise ReceiptLimitError(f"is longer than {MAX_RECEIPT_BYTES} bytes", file=name)
            if line.strip():
                yield _entry(name, line)


def _entry(name: str, source: Path | bytes) -> Entry:
    try:
        data = load(source) if isinstance(source, Path) else parse(source, name)
        if not isinstance(data, dict):
            return Entry(file=name, problem="a receipt is a JSON object")
        receipt = decode(data)
        if receipt.digest != digest_of(data):
            return Entry(file=name, problem="the digest is not its own")
    except ReceiptError as error:
        return Entry(file=name, problem=f"{error.reason} in {error.path!r}" if error.path else error.reason)
    return row(name, receipt)


def row(file: str, receipt: Receipt) -> Entry:
    """One receipt as an entry."""
    speeds = [statistics.median(values) for (_, what, _), values in ratios(receipt).items() if what == "decode"]
    return Entry(
        file=file,
        timestamp=receipt.timestamp,
        commit=receipt.identity.git_commit[:12] + ("+" if receipt.identity.git_dirty else ""),
        machine=machine_kind(receipt),
        parity=receipt.parity.status,
        passed=receipt.parity.passed,
        required=receipt.parity.required,
        deviations=receipt.parity.deviations,
        decode=statistics.median(speeds) if speeds else None,
    )


def to_json(entries: Sequence[Entry]) -> str:
    """A JSON array."""
    rows = [{name: getattr(entry, name) for name in Entry.__slots__} for entry in entries]
    return json.dumps(rows, ensure_ascii=False, indent=2) + "\n"
