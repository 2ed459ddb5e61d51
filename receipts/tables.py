"""Side tables: rows too many for a receipt, one JSON file each, named by its hash.

A table has fixed columns. Measured columns may be null, which stands for "not finite": JSON has no NaN, and
a missing value must not look like a good one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import NoneType
from typing import Any

from receipts.codec import MAX_SAFE, Anything, plain
from receipts.errors import ReceiptError

#: Column → kind. `text`, `integer`, `flag`; `measured` is a finite number or null; `place` an integer or null.
COLUMNS: Mapping[str, Mapping[str, str]] = {
    "operations": {
        "lane": "text",
        "case": "text",
        "tap": "text",
        "layer": "integer",
        "compared": "integer",
        "max_abs_err": "measured",
        "max_abs_ref": "measured",
        "ratio": "measured",
        "limit": "measured",
        "outcome": "text",
        "worst_token": "place",
        "worst_index": "place",
    },
    "positions": {
        "lane": "text",
        "case": "text",
        "phase": "text",
        "position": "integer",
        "rel_l2": "measured",
        "max_abs": "measured",
        "kl": "measured",
        "top1_equal": "flag",
        "margin": "measured",
        "floor": "measured",
    },
}
Row = dict[str, Any]
#: Kind → types that fit without a closer look. Numbers always get one: they may be NaN or too large.
_PLAIN: Mapping[str, tuple[type, ...]] = {
    "text": (str,),
    "flag": (bool,),
    "integer": (),
    "measured": (NoneType,),
    "place": (NoneType,),
}


def rows_of(table: str, rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Rows with exactly the columns of their table, in its order, as JSON types.

    Raises:
        ReceiptError: With the path `operations[17].ratio` of a missing, unknown or mistyped value.
    """
    columns = COLUMNS.get(table)
    if columns is None:
        raise ReceiptError(f"unknown table {table!r}", path="side_files", remedy=f"one of {', '.join(COLUMNS)}")
    checked = []
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ReceiptError("a row is an object", path=f"{table}[{i}]")
        if row.keys() != columns.keys():
            odd = sorted(str(name) for name in row.keys() ^ columns.keys())
            raise ReceiptError(
                f"columns missing or unknown: {', '.join(odd)[:200]}",
                path=f"{table}[{i}]",
                remedy=f"{table} has {', '.join(columns)}",
            )
        checked.append(
            {
                name: value if type(value := row[name]) in _PLAIN[kind] else _cell(kind, value, f"{table}[{i}].{name}")
                for name, kind in columns.items()
            }
        )
    return checked


def _cell(kind: str, value: Anything, path: str) -> Anything:
    value = plain(value)
    if type(value) in _PLAIN[kind]:
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        if kind == "measured":
            return value
        if kind in ("integer", "place") and value == int(value) and abs(value) <= MAX_SAFE:
            return int(value)
    raise ReceiptError(
        f"{value!r:.60} does not fit a column of kind {kind!r}",
        path=path,
        remedy="write null for a measurement that is not finite" if kind == "measured" else None,
    )
