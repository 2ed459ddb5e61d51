"""Many receipts as rows: what each measured, when, at which commit, on which machine.

A history is a picture of what receipts say, not a verification: sizes, JSON and the schema's version are checked, the
values that are shown are checked one by one, and a receipt that cannot be read is listed with its reason. Digests are
recomputed only when asked for (`verified`), because that takes twenty times as long.
"""

from __future__ import annotations

import gc
import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from receipts.codec import digest_of
from receipts.errors import ReceiptError
from receipts.read import MAX_RECEIPT_BYTES, check_version, contents, decode
from receipts.sources import Source, sources

#: Receipts that one process reads at a time; below two such batches no second process is worth its start.
BATCH = 100
#: Rungs whose measured value is a size of drift.
DRIFT = ("operations", "logits", "decode", "quality")
_ENGINE = "bitnet"


class Value(NamedTuple):
    """One measured value of one receipt.

    Attributes:
        kind: `drift`, `speed` or `memory`.
        series: What was measured: lane and rung, or model and phase.
        unit: `of its limit`, `tokens/s`, `× the peer`, `s`, `MB`.
        value: Its size.
    """

    kind: str
    series: str
    unit: str
    value: float


class Seen(NamedTuple):
    """One receipt, as far as it could be read.

    Attributes:
        file: Where it was found.
        problem: Why it could not be read; "" if it could.
        timestamp, commit, machine, parity: Of the receipt.
        values: What it measured.
    """

    file: str
    problem: str = ""
    timestamp: str = ""
    commit: str = ""
    machine: str = ""
    parity: str = ""
    values: tuple[Value, ...] = ()


def collect(places: Sequence[Path], *, workers: int = 1, verified: bool = False) -> Iterator[Seen]:
    """Every receipt in files, folders, JSON Lines and archives, in the order in which they are found.

    Args:
        places: Where to look.
        workers: Processes that read. More than one needs a main module that may be imported again.
        verified: Whether to check types and digest of each receipt in full.

    Raises:
        ReceiptError: A place is missing, damaged or a bomb.
    """
    found = sources(places)
    first = list(islice(found, 2 * BATCH))
    if workers < 2 or len(first) < 2 * BATCH:
        yield from (seen(source, verified=verified) for batch in (first, found) for source in batch)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting: list[Future[list[Seen]]] = []
        for batch in _batches(first, found):
            waiting.append(pool.submit(_seen_all, batch, verified))
            if len(waiting) > 2 * workers:  # what lies in an archive is not all in memory at once
                yield from waiting.pop(0).result()
        for future in waiting:
            yield from future.result()


def _batches(first: list[Source], rest: Iterable[Source]) -> Iterator[list[Source]]:
    yield first[:BATCH]
    yield first[BATCH:]
    rest = iter(rest)
    while batch := list(islice(rest, BATCH)):
        yield batch


def _seen_all(batch: list[Source], verified: bool) -> list[Seen]:
    gc.disable()  # JSON makes many objects and no cycles; this process does nothing else
    return [seen(source, verified=verified) for source in batch]


def seen(source: Source, *, verified: bool = False) -> Seen:
    """One receipt. What is none is a `Seen` with its problem."""
    name, content = source
    try:
        raw = contents(content, MAX_RECEIPT_BYTES) if isinstance(content, Path) else content
        data = json.loads(raw)
        if not isinstance(data, dict):
            return Seen(name, "a receipt is a JSON object")
        check_version(data.get("schema_version"))
        if verified and decode(data).digest != digest_of(data):
            return Seen(name, "the digest is not its own")
        return _seen(name, data)
    except ReceiptError as error:
        return Seen(name, f"{error.reason} in {error.path!r}" if error.path else error.reason)
    except (ValueError, RecursionError) as error:
        return Seen(name, f"is not JSON: {error}"[:200])
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        return Seen(name, f"has not the form of a receipt: {type(error).__name__} {error}"[:200])


def _seen(name: str, data: Mapping[str, Any]) -> Seen:
    identity, machine = data["identity"], data["environment"]
    commit = _text(identity.get("git_commit", ""))[:12] + ("+" if identity.get("git_dirty") else "")
    values = [*_drift(data["lanes"]), *_speed(data["performance"])]
    return Seen(
        file=name,
        timestamp=_text(data["timestamp"]),
        commit=commit,
        machine=f"{_text(machine['machine'])} · {_text(machine['cpu'])} · {int(machine.get('cores', 0))} cores",
        parity=_text(data["parity"]["status"]),
        values=tuple(value for value in values if math.isfinite(value.value)),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value


def _size(value: object) -> float:
    """A number that is not negative."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise TypeError(f"{value!r:.40} is no size")
    return float(value)


def _drift(lanes: Sequence[Mapping[str, Any]]) -> Iterator[Value]:
    for lane in lanes:
        if lane.get("known_deviation"):
            continue  # how far a wrong reference is away says nothing about drift
        name = _text(lane["name"])
        for rung in lane["rungs"]:
            measured, limit = rung.get("measured"), rung.get("limit")
            if rung["name"] in DRIFT and measured is not None and limit:
                yield Value("drift", f"{name} · {rung['name']}", "of its limit", _size(measured) / _size(limit))


def _speed(rows: Sequence[Mapping[str, Any]]) -> Iterator[Value]:
    peers = [row for row in rows if row["engine"] != _ENGINE]
    for row in rows:
        if row["engine"] != _ENGINE:
            continue
        name = f"{_text(row['model'])} · {_text(row['what'])}"
        rate = 0.0 if row["what"] == "first_token" else _size(row["tokens_per_second"])  # that one is waited for
        if rate:
            yield Value("speed", name, "tokens/s", rate)
        elif row["seconds"]:
            yield Value("speed", name, "s", statistics.median(map(_size, row["seconds"])))
        for peer in peers:
            same = (peer["model"], peer["what"], peer["threads"]) == (row["model"], row["what"], row["threads"])
            if same and rate and (other := _size(peer["tokens_per_second"])):
                yield Value("speed", f"{name} ÷ {_text(peer['engine'])}", "× the peer", rate / other)
        if memory := _size(row.get("memory_bytes", 0)):
            yield Value("memory", f"{name} · largest resident", "MB", memory / 1e6)
