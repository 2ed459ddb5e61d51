"""Random tampering with real receipts, and whether it is caught: the kinds of damage, and the checks in their order.

`caught_by` asks the checks of `receipts.verify` one after another and stops at the first that refuses, which is what
makes 10⁵ tampers affordable; `tests/test_tamper.py` shows on samples that it and the verifier agree.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import time
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from receipts import codec
from receipts.codec import canonical, digest_of
from receipts.errors import ReceiptError
from receipts.read import check_version, decode, parse
from receipts.record import Receipt
from receipts.rule import RULES, View
from receipts.schema import problems
from receipts.tables import rows_of
from receipts.verify import verify  # noqa: F401  # enters all rules

Json = Any
#: Sentences, names and descriptions: what a person reads beside the evidence. No number follows from them.
WORDS = re.compile(
    r"\.(why|reason|explanation|how|notices\[\d+\]|command|cpu|os|run_id|variables\.\w+|detail\.[^.]*|pre_source|pre|"
    r"metric|question|activation_source|version|git_commit|package_version|packages\.[^.]*|"
    r"(supports|does_not)\[\d+\])$|^\.claims"
)
#: What the engine computed, and on which file: what a replay computes again.
RESULTS = re.compile(r"^\.(cases|models|tokenizers)\[\d+\](?!\.(name|file|model)$)")
#: The machine: nothing follows from its description but which instruction sets there are.
MACHINE = re.compile(r"^\.environment\.")
#: Digits and names that a liar would put in the place of others.
HEX = re.compile(r"[0-9a-f]{40,64}")


@dataclass(frozen=True, slots=True)
class Original:
    """A receipt that holds, with its side tables in memory."""

    path: Path
    content: bytes
    data: Json
    tables: tuple[Any, ...]
    raw_tables: tuple[bytes, ...]
    receipt: Receipt


def original(path: Path) -> Original:
    content = path.read_bytes()
    data = json.loads(content)
    raw = tuple((path.parent / side["file"]).read_bytes() for side in data["side_files"])
    tables = tuple(rows_of(s["table"], json.loads(r)) for s, r in zip(data["side_files"], raw, strict=True))
    return Original(path, content, data, tables, raw, decode(data))


def caught_in_table(data: Json, tables: tuple[Any, ...], rules: Rules) -> str:
    """As `caught_by`, where other side files are listed and lie there."""
    files = codec._decode(codec.hints(Receipt)["side_files"], data["side_files"], "side_files")
    receipt = replace(rules.source.receipt, side_files=files)
    return rules.broken(receipt, ["side_files"], tables)


def caught_by(data: Json, tables: tuple[Any, ...], *, digest: bool = True) -> str:
    """The first check that refuses a receipt, or "". Where the digest was made again it need not be made twice."""
    try:
        receipt = decode(data)
    except ReceiptError:
        return "form.fields"
    if digest and receipt.digest != digest_of(data):
        return "form.digest"
    found = broken_rule(receipt, tables)
    return found or ("form.schema" if problems(data, limit=1) else "")


def broken_rule(receipt: Receipt, tables: tuple[Any, ...]) -> str:
    """The first rule of consistency that a receipt breaks, or ""."""
    view = View(receipt, tables, datetime.now(UTC))
    return next((name for name, rule in RULES.items() if next(iter(rule.check(view)), None) is not None), "")


class Watched:
    """A receipt that remembers which of its parts were looked at."""

    def __init__(self, receipt: Receipt) -> None:
        self.receipt, self.seen = receipt, set[str]()

    def __getattr__(self, name: str) -> Any:
        self.seen.add(name)
        return getattr(self.receipt, name)


class Rules:
    """The rules, for changes of a receipt whose tables stay: those last that go through thousands of rows.

    A rule that held on the original, and looked at no part that was changed, holds again.
    """

    def __init__(self, source: Original) -> None:
        self.source, self.grouped = source, dict[str, Any]()
        self.now = datetime.now(UTC)
        self.reads: dict[str, set[str]] = {}
        seconds: dict[str, float] = {}
        for name, rule in RULES.items():
            watched = Watched(source.receipt)
            begin = time.perf_counter()
            assert not list(rule.check(View(watched, source.tables, self.now))), name  # type: ignore[arg-type]
            seconds[name], self.reads[name] = time.perf_counter() - begin, watched.seen
        self.order = sorted(RULES, key=seconds.__getitem__)

    def broken(self, receipt: Receipt, parts: list[str], tables: tuple[Any, ...] | None = None) -> str:
        """As `broken_rule`, where only these parts are others than the original's, or its tables."""
        same = tables is None
        view = View(receipt, self.source.tables if same else tables, self.now, self.grouped if same else {})
        for name in self.order:
            if not self.reads[name].isdisjoint(parts) and next(iter(RULES[name].check(view)), None) is not None:
                return name
        return ""


# ---- bytes ---------------------------------------------------------------------------------------------------------


def flipped(content: bytes, rng: random.Random) -> bytes:
    """One to three bytes changed."""
    raw = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(raw))
        raw[at] = raw[at] ^ (1 << rng.randrange(8)) if rng.random() < 0.5 else rng.randrange(256)
    return bytes(raw)


def caught_in_bytes(content: bytes, source: Original) -> str:
    """As `caught_by`, from bytes; "the same" where the JSON values are those of the original."""
    try:
        data = parse(content, "")
    except ReceiptError:
        return "form.json"
    if data == source.data and repr(data) == repr(source.data):
        return "the same"
    if not isinstance(data, dict):
        return "form.json"
    try:
        if data.get("digest") != digest_of(data):
            return "form.digest"
    except ReceiptError:
        return "form.fields"  # what has no canonical form is no number, or no text
    found = caught_by(data, source.tables, digest=False)
    if not found and canonical(data) == canonical(source.data):
        return "the same"  # 1.0 and 1, in another spelling
    return found


# ---- fields --------------------------------------------------------------------------------------------------------


def leaves(data: Json, path: str = "") -> list[tuple[str, tuple[Any, ...]]]:
    """(path, way) of every scalar but the digest."""
    found: list[tuple[str, tuple[Any, ...]]] = []

    def walk(value: Json, path: str, way: tuple[Any, ...]) -> None:
        if isinstance(value, dict):
            for name, item in value.items():
                walk(item, f"{path}.{name}", (*way, name))
        elif isinstance(value, list):
            for i, item in enumerate(value):
                walk(item, f"{path}[{i}]", (*way, i))
        elif path != ".digest":
            found.append((path, way))

    walk(data, path, ())
    return found


def reach(data: Json, way: tuple[Any, ...]) -> Json:
    for step in way:
        data = data[step]
    return data


def other(value: Json, path: str, pool: list[Json], rng: random.Random) -> Json:
    """Another value that a liar might write there: of the same kind, a little or much different, or from elsewhere."""
    elsewhere = [v for v in (rng.choice(pool) for _ in range(4)) if type(v) is type(value) and v != value]
    if elsewhere and rng.random() < 0.4:
        return elsewhere[0]
    if isinstance(value, bool):
        return not value
    if value is None:
        return rng.choice([0, "", "bitnet", 1.0])
    if isinstance(value, int):
        return rng.choice(
            [value + 1, max(value - 1, 0) if value else 1, 2 * value + 1, rng.randrange(max(2 * value, 10))]
        )
    if isinstance(value, float):
        return value * rng.choice([0.1, 0.5, 0.9, 1.1, 2.0, 10.0, rng.random()])
    if HEX.fullmatch(value):
        return hashlib.sha256(rng.randbytes(8)).hexdigest()[: len(value)]
    if value in ("pass", "fail", "error", "unsupported", "inconclusive"):
        return rng.choice([o for o in ("pass", "fail", "error", "unsupported", "inconclusive") if o != value])
    return rng.choice([value + "x", value[:-1], value.upper(), "other"])


def changed(source: Original, way: tuple[Any, ...], path: str, pool: list[Json], rng: random.Random) -> Json | None:
    """The receipt's JSON with one leaf changed; its digest counts as made again. None where that says the same."""
    data = spine(source.data, way)
    holder = reach(data, way[:-1])
    before = holder[way[-1]]
    holder[way[-1]] = other(before, path, pool, rng)
    if holder[way[-1]] == before:
        return None
    return data


def caught_in_field(data: Json, source: Original, rules: Rules) -> str:
    """As `caught_by`; a side file is listed as it is, or it is not found, or it is another one."""
    if data["side_files"] != source.data["side_files"]:
        return "side_files.content"
    parts = [name for name, value in data.items() if value is not source.data[name]]
    try:  # `decode`, but for what is shared with the original
        check_version(data["schema_version"])
        new = {name: _decoded(data[name], source, name) for name in parts}
    except ReceiptError:
        return "form.fields"
    found = rules.broken(replace(source.receipt, **new), parts)
    return found or ("form.schema" if problems(data, limit=1) else "")


def _decoded(value: Json, source: Original, name: str) -> Any:
    hint, before = codec.hints(Receipt)[name], source.data[name]
    if not isinstance(value, list) or not value or len(value) != len(before):
        return codec._decode(hint, value, name)
    known = getattr(source.receipt, name)
    return tuple(
        old if item is was else codec._decode(get_args(hint)[0], item, f"{name}[{i}]")
        for i, (item, was, old) in enumerate(zip(value, before, known, strict=True))
    )


def spine(data: Json, way: tuple[Any, ...]) -> Json:
    """A copy in which everything on the way is new and all the rest is shared."""
    copy = dict(data) if isinstance(data, dict) else list(data)
    if len(way) > 1:
        copy[way[0]] = spine(data[way[0]], way[1:])
    return copy


# ---- side files and lanes ------------------------------------------------------------------------------------------


def swapped(source: Original, foreign: Original, rng: random.Random) -> tuple[Json, tuple[Any, ...], str] | None:
    """Another table in the place of one, listed as if it had always been: (data, tables, how).

    None where it is the same: two runs of one engine often agree to the bit.
    """
    data = deepcopy({"side_files": source.data["side_files"]}) | {
        k: v for k, v in source.data.items() if k != "side_files"
    }
    tables: list[Any] = list(source.tables)
    i = rng.randrange(len(tables))
    how = rng.choice(["of another run", "of the other kind", "a row changed", "rows dropped", "a row twice"])
    side = data["side_files"][i]
    if how == "of another run":
        rows = json.loads(foreign.raw_tables[i])
    elif how == "of the other kind":
        rows = json.loads(source.raw_tables[(i + 1) % len(tables)])
    else:
        rows = list(source.tables[i])
        j = rng.randrange(len(rows))
        if how == "a row changed":
            rows[j] = _changed(rows[j], rng)
        elif how == "rows dropped":
            del rows[j : j + rng.randint(1, 50)]
        else:
            rows.insert(j, rows[j])
    if rows == source.tables[i]:
        return None
    content = json.dumps(rows).encode()
    digest = hashlib.sha256(content).hexdigest()
    side |= {"file": f"rows/{digest}.json", "sha256": digest, "bytes": len(content), "rows": len(rows)}
    try:
        tables[i] = rows_of(side["table"], rows)
    except ReceiptError as error:
        tables[i] = error
    return data, tuple(tables), how


def _changed(row: Json, rng: random.Random) -> Json:
    """A row with one of its numbers another: a measured one, or else the largest of an array, or an id."""
    factor = rng.choice([0.01, 0.5, 3.0, 1e6])
    if measured := [name for name, value in row.items() if isinstance(value, float)]:
        name = rng.choice([name for name in measured if row[name]] or measured)
        return row | {name: (row[name] or 1.0) * factor}
    name = rng.choice([name for name, value in row.items() if isinstance(value, list)] or ["id"])
    if name == "id":
        return row | {"id": row["id"] + 1}
    values = list(row[name])
    at = values.index(max(values, key=lambda value: value or 0.0))
    values[at] = round((values[at] or 1.0) * factor) if name != "errors" else (values[at] or 1.0) * factor
    return row | {name: values}


def spliced(source: Original, foreign: Original, rng: random.Random) -> tuple[Json, str] | None:
    """A lane of another run in the place of one's own, or a lane's rungs in the place of another lane's."""
    data = dict(source.data) | {"lanes": list(source.data["lanes"])}
    i = rng.randrange(len(data["lanes"]))
    lane = data["lanes"][i]
    how = rng.choice(["the lane of another run", "the rungs of another run", "the rungs of another lane"])
    theirs = next((one for one in foreign.data["lanes"] if one["name"] == lane["name"]), None)
    if how == "the rungs of another lane":
        theirs = rng.choice(data["lanes"])
    if theirs is None:
        return None
    new = deepcopy(theirs) if how == "the lane of another run" else lane | {"rungs": deepcopy(theirs["rungs"])}
    if new == lane:
        return None
    data["lanes"][i] = new
    return data, how
