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

#: Column → kind. `text`, `integer`, `flag`; `measured` is a finite number or null; `place` an integer or null;
#: `amounts` is an array of measured, `counts` one of integers.
#:
#: `profiles` says more of each row of `operations`: `errors` is max_abs_err / max_abs_ref by position (three digits),
#: `ours` and `theirs` are histograms of the values over the largest |reference|, in `BINS`.
#: `tokens` lists what both sides evaluated: the prompt, then the reference's continuation; `ours` is what the engine
#: chose in that place, null in the prompt.
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
    "profiles": {
        "lane": "text",
        "case": "text",
        "tap": "text",
        "layer": "integer",
        "errors": "amounts",
        "ours": "counts",
        "theirs": "counts",
    },
    "tokens": {
        "lane": "text",
        "case": "text",
        "position": "integer",
        "id": "integer",
        "text": "text",
        "ours": "place",
        "ours_text": "text",
    },
    "runs": {
        "lane": "text",
        "case": "text",
        "ids_sha256": "text",
        "rows": "integer",
        "ours_sha256": "text",
        "theirs_sha256": "text",
        "noise_median": "measured",
        "noise_running": "measured",
        "noise_largest": "measured",
        "noise_margin": "measured",
        "noise_nll": "measured",
    },
    "candidates": {
        "lane": "text",
        "case": "text",
        "position": "integer",
        "rank": "integer",
        "id": "integer",
        "ours": "measured",
        "theirs": "measured",
    },
}
#: Edges of histograms above 0, as shares of the largest value of the reference; below 0 they are mirrored, so that
#: there is one bin more than edges. The outermost bins are open.
EDGES = tuple(4.0**-k for k in range(8, 0, -1))
BINS = 2 * len(EDGES) + 1
Row = dict[str, Any]
#: Kind → types that fit without a closer look. Numbers always get one: they may be NaN or too large.
_PLAIN: Mapping[str, tuple[type, ...]] = {
    "text": (str,),
    "flag": (bool,),
    "integer": (),
    "measured": (NoneType,),
    "place": (NoneType,),
    "amounts": (),
    "counts": (),
}
_ELEMENT = {"amounts": "measured", "counts": "integer"}


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
    if kind in _ELEMENT and isinstance(value, list | tuple):
        return [_cell(_ELEMENT[kind], item, f"{path}[{i}]") for i, item in enumerate(value)]
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
