"""Many receipts as rows: when, which commit, which machine, what passed, how fast beside the peer."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from receipts.baseline import machine_kind, ratios
from receipts.codec import digest_of
from receipts.errors import ReceiptError
from receipts.read import decode, load, parse
from receipts.record import Receipt
from receipts.sources import sources


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
    """Every receipt in files, folders, JSON Lines and archives, oldest first; what is none is listed with its problem.

    Raises:
        MissingReceiptError: A place does not exist.
        ReceiptLimitError: There are more than `receipts.sources.MAX_RECEIPTS`.
        ReceiptError: An archive is damaged.
    """
    found = (_entry(name, source) for name, source in sources(places))
    return tuple(sorted(found, key=lambda entry: (entry.timestamp, entry.file)))


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
